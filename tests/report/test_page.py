"""The page of a real tiny run: every number from its place, everything escaped."""

from __future__ import annotations

import json
import math
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner
from refusals import refusal
from tiny import save_tiny

from npft.artifacts import Channel, Report, Row, Sensitivity, StepLoss
from npft.cli import cli
from npft.report import comparison, page
from npft.report.reading import BENCH, RESULTS, Bench, Found, read_run


class Reader(HTMLParser):
    """Numbers with their places, ids, and what would need a network."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.numbers: list[tuple[str, str]] = []
        self.shown: list[str] = []
        self.ids: list[str] = []
        self.outside: list[str] = []
        self._in_number = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = dict(attrs)
        if "id" in known:
            self.ids.append(str(known["id"]))
        for word in ("src", "href", "xlink:href", "data"):
            if word in known and not str(known[word]).startswith(("#", "data:")):
                self.outside.append(str(known[word]))
        if tag == "data":
            self.numbers.append((str(known["data-from"]), str(known["value"])))
            self._in_number = True

    def handle_endtag(self, tag: str) -> None:
        if tag == "data":
            self._in_number = False

    def handle_data(self, data: str) -> None:
        if self._in_number:
            self.shown.append(data)


def at(values: Any, place: str) -> Any:
    for name, index in re.findall(r"(\w+)(?:\[(\d+)\])?", place):
        values = values[name]
        if index:
            values = values[int(index)]
    return values


def test_every_number_is_the_one_at_its_place(run: Path) -> None:
    read = Reader(page.render(read_run(run)))
    results = json.loads((run / RESULTS).read_text())
    assert len(read.numbers) == len(read.shown) > 30
    for (place, value), shown in zip(read.numbers, read.shown, strict=True):
        assert float(value) == at(results, place)
        assert float(shown) == pytest.approx(float(value), rel=1e-2, abs=6e-3)
    cells = {place for place, _ in read.numbers if place.endswith("value")}
    assert cells == {f"rows[{index}].value" for index in range(len(results["rows"]))}


def test_tasks_have_their_errors_and_questions() -> None:
    rows = [
        Row(model, quantizer, bits, 0, 4.0, "piqa", "acc", value, stderr=error, questions=1838)
        for model, quantizer, bits, value, error in [
            ("original", "none", 32, 0.68, 0.0109),
            ("original", "rtn", 4, 0.61, 0.0114),
            ("tuned", "rtn", 4, 0.64, None),
        ]
    ]
    report = Report(rows)
    read = Reader(page.render(Found("run", report, {})))
    assert dict(read.numbers) == {
        **{f"rows[{index}].value": str(row.value) for index, row in enumerate(rows)},
        **{f"rows[{index}].stderr": str(rows[index].stderr) for index in (0, 1)},
        "rows[0].questions": "1838",
    }
    assert {"0.6800", "0.0109", "1,838"} <= set(read.shown)


def test_the_page_stands_alone_and_has_every_plot(run: Path) -> None:
    text = page.render(read_run(run))
    read = Reader(text)
    assert read.outside == []
    assert "url(http" not in text
    assert "@import" not in text
    plots = {"frontier-0", "losses", "sensitivity", "places", "latency"}
    assert plots <= set(read.ids)
    assert text.count("<svg") == len(plots)
    assert len(read.ids) == len(set(read.ids))
    assert "#010203" not in text


def test_run_and_bench_write_the_page(run: Path) -> None:
    written = (run / "report.html").read_text()
    assert written == page.render(read_run(run))
    assert 'id="latency"' in written
    for word in ("kmeans", "residual", "seed", "peak memory, GB", "torch", "fingerprint"):
        assert word in written


def test_the_page_carries_results_json(run: Path) -> None:
    text = page.render(read_run(run))
    carried = re.search(r'id="results.json">(.*?)</script>', text, re.DOTALL)
    assert carried is not None
    assert json.loads(carried[1]) == json.loads((run / RESULTS).read_text())


def test_step_by_step_gives_the_same_pictures(tmp_path) -> None:
    model = save_tiny(tmp_path / "tiny")
    run = str(tmp_path / "run")
    small = ["--samples", "4", "--context", "32", "--eval-samples", "2", "--quiet"]

    def npft(*arguments: str) -> None:
        told = CliRunner().invoke(cli, arguments, catch_exceptions=False)
        assert told.exit_code == 0

    npft("score", "--model", str(model), "--output", run, *small, "--quant", "rtn", "--bits", "4",
         "--epochs", "1")  # fmt: skip
    npft("tune", run, "--quiet")
    npft("quantize", run, "--quiet")
    npft("eval", run, "--quiet")
    read = Reader((tmp_path / "run" / "report.html").read_text())
    assert {"frontier-0", "losses", "sensitivity", "places"} <= set(read.ids)


HOSTILE = "<script>alert(1)</script>\"'&</script><svg onload=x>"


def hostile() -> Found:
    rows = [
        Row(model, "rtn", 4, 0, 4.0, HOSTILE, metric, 1.0, 10, 5, variant=HOSTILE)
        for model in ("original", "tuned")
        for metric in ("kl", "perplexity")
    ]
    report = Report(rows, unavailable={HOSTILE: HOSTILE}, notes=[HOSTILE])
    return Found(HOSTILE, report, {"model": HOSTILE, "calibration": HOSTILE})


@pytest.mark.parametrize("render", [page.render, lambda one: comparison.render([one, one])])
def test_whatever_is_shown_is_escaped(render) -> None:
    text = render(hostile())
    assert "<script>alert" not in text
    assert "<svg onload" not in text
    assert "&lt;script&gt;alert(1)" in text


class Tags(HTMLParser):
    """Every tag with its attributes, and what scripts hold."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.lasttag == "script" and self.cdata_elem == "script":
            self.scripts[-1] += data


def everywhere() -> Found:
    """A run with the hostile name wherever there is a name, in every plot too."""
    found = hostile()
    math = HOSTILE + "$\\x{$\x1b[31m--><!--"
    report = replace(
        found.report,
        rows=[replace(row, quantizer=math, dataset=math) for row in found.report.rows],
        losses={math: [StepLoss(1, 1.0, 2.0), StepLoss(2, 1.0, None)], "tuned": []},
        seconds={math: 1.0},
        environment={math: math},
        sensitivity=Sensitivity(
            0.1, 1, 1, 2, 2, [Channel(math, 1, [1], [1.0], [2.0])], {math: [1, 2]}
        ),
    )
    bench = Bench.model_validate(
        {
            "rows": [
                {"what": "decode", "variant": math, "tokens": 1, "milliseconds": 1, "floor_ms": 1}
            ],
            "environment": {"gpu": math},
        }
    )
    words = {"name": math, math: math}
    settings: dict[str, Any] = {word: words for word in ("scorer", "sampler", "tuning")}
    settings |= {"model": math, "evaluate": words, "provenance": words, "recipe": math}
    return Found(math, report, settings, bench)


@pytest.mark.parametrize("render", [page.render, lambda one: comparison.render([one, one])])
def test_a_page_of_hostile_names_has_no_tag_of_theirs(render) -> None:
    text = render(everywhere())
    read, plain = Tags(text), Tags(render(hostile()))
    kinds = {tag for tag, _ in read.tags}
    known = {tag for tag, _ in plain.tags} | {"path", "g", "use", "defs", "clippath", "rect"}
    assert kinds <= known | {"text", "style", "image", "tspan", "lineargradient", "stop"}
    for tag, attributes in read.tags:
        assert not any(name.startswith("on") for name in attributes), (tag, attributes)
        assert tag != "script" or attributes.get("type") == "application/json"
    carried = [json.loads(script) for script in read.scripts]
    if carried:
        assert carried[0]["rows"][0]["dataset"] == everywhere().report.rows[0].dataset
    ElementTree.fromstring(
        text[text.index("<svg") : text.index("</svg>") + 6].replace("xlink:", "")
    )


def test_lists_that_do_not_fit_together_are_refused(run: Path, tmp_path) -> None:
    results = json.loads((run / RESULTS).read_text())
    for place, value in (("channels", []), ("places", {"a": [1], "b": [1, 2]})):
        broken = {**results, "sensitivity": {**results["sensitivity"], place: value}}
        (tmp_path / RESULTS).write_text(json.dumps(broken))
        refusal(lambda: read_run(tmp_path), "sensitivity", "fit together")


def test_settings_of_the_wrong_kind_are_refused(run: Path, tmp_path) -> None:
    shutil.copy(run / RESULTS, tmp_path)
    (tmp_path / "config.toml").write_text("evaluate = 3")
    refusal(lambda: read_run(tmp_path), "config.toml", "evaluate")


def test_comparison_marks_the_better_run(run: Path) -> None:
    one = read_run(run)
    worse = [
        replace(row, value=row.value * 2) if row.model == "tuned" else row
        for row in one.report.rows
    ]
    other = Found("other", replace(one.report, rows=worse), {**one.settings, "seed": 7})
    text = comparison.render([one, other])
    settings = re.search(r"<td>seed</td><td>0</td><td>7</td>", text)
    assert settings is not None
    cells = re.findall(r'<td( class="best")?><data [^>]*data-from="(\w+) ', text)
    quantized = [(bool(best), name) for best, name in cells]
    assert {name for best, name in quantized if best} == {"run"}
    assert sum(best for best, _ in quantized) == 4


def test_what_is_no_run_is_refused(tmp_path, run: Path) -> None:
    refusal(lambda: read_run(tmp_path), "no results.json", "npft run")
    (tmp_path / RESULTS).write_text('{"rows": [{"model": 3}]}')
    refusal(lambda: read_run(tmp_path), "rows.0")
    (tmp_path / RESULTS).write_text("\x00")
    refusal(lambda: read_run(tmp_path), "results.json")
    (tmp_path / RESULTS).write_text((run / RESULTS).read_text())
    (tmp_path / "config.toml").write_text("[")
    refusal(lambda: read_run(tmp_path), "TOML")
    (tmp_path / "config.toml").unlink()
    (tmp_path / BENCH).write_text("[]")
    refusal(lambda: read_run(tmp_path), "bench.json")


@pytest.mark.parametrize(
    ("name", "value"),
    [("tokens", 0), ("tokens", 2**64), ("milliseconds", 0.0), ("floor_ms", math.inf)],
)
def test_latencies_that_no_axis_has_are_refused(name, value, tmp_path, run: Path) -> None:
    (tmp_path / RESULTS).write_text((run / RESULTS).read_text())
    row = {"what": "decode", "variant": "x", "tokens": 1, "milliseconds": 1.0, "floor_ms": 1.0}
    (tmp_path / BENCH).write_text(json.dumps({"rows": [{**row, name: value}]}))
    refusal(lambda: read_run(tmp_path), "bench.json", name)


def test_a_setting_of_which_only_the_perplexity_is_known() -> None:
    rows = [
        Row("tuned", "rtn", bits, 0, 4.0, "c4", metric, value, tokens=15, context=16)
        for bits, metric, value in [
            (4, "perplexity", 20.0),
            (4, "kl", 0.1),
            (3, "perplexity", 30.0),
        ]
    ]
    read = Reader(page.render(Found("run", Report(rows), {})))
    assert {"20.00", "0.1000", "30.00"} <= set(read.shown)


def test_the_verb_says_where_the_page_is(run: Path, tmp_path) -> None:
    file = tmp_path / "both.html"
    told = CliRunner().invoke(cli, ["report", str(run), str(run), "--output", str(file)])
    assert told.output.strip() == str(file)
    assert "2 runs compared" in file.read_text()
    told = CliRunner().invoke(cli, ["report", str(run), "--output", str(tmp_path / "no" / "x")])
    assert "cannot be written" in str(told.exception)
