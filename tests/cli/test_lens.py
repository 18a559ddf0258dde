"""``npft lens`` from its flags to its table, JSON and plot."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from refusals import refusal
from rich.console import Console
from tiny import save_tiny

from npft.cli import cli
from npft.errors import NpftError
from npft.lens.measuring import Row
from npft.report import lens as report

SMALL = ["--context", "32", "--samples", "2", "--eval-samples", "2", "--kind", "gaussian"]


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model") / "tiny")


def lens(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["lens", *arguments], catch_exceptions=True)


def test_table_json_and_plot_tell_the_same(tiny_folder, tmp_path) -> None:
    told = lens(
        "--model", str(tiny_folder), *SMALL, "--target", "weights", "--intensities", "0.2,0.1",
        "--bits", "4", "--output", str(tmp_path / "lens.json"), "--plot",
        str(tmp_path / "lens.png"), "--json",
    )  # fmt: skip
    assert told.exception is None, told.output
    found = json.loads(told.stdout)
    assert json.loads((tmp_path / "lens.json").read_text()) == found
    about = (found["model"], found["seed"], found["context"], found["share"])
    assert about == (str(tiny_folder), 0, 32, 0.01)
    gaussian = [row["intensity"] for row in found["rows"] if row["kind"] == "gaussian"]
    assert gaussian == [0.1, 0.2]
    kinds = {row["kind"] for row in found["rows"]}
    assert {"none", "rtn-4", "nonuniform-4", "clip-0.1%"} <= kinds
    assert "beats" in found["reading"] or "loses to" in found["reading"]
    assert (tmp_path / "lens.png").read_bytes().startswith(b"\x89PNG")


def test_options_reach_the_quantizers(tiny_folder) -> None:
    told = lens(
        "--model", str(tiny_folder), *SMALL, "--target", "weights", "--intensities", "0.1",
        "--quant", "nonuniform", "--bits", "4", "-o", "quant.nonuniform.power=2", "--quiet",
    )  # fmt: skip
    assert told.exception is None, told.output
    assert "nonuniform-4-p2" in told.stdout
    assert not told.stderr


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        (["--intensities", "a,b"], "--intensities 'a,b'"),
        (["--intensities", "2"], "below 1"),
        (["--kind", "pink"], "'pink' is unknown"),
        (["--quant", "nobody"], "nobody"),
        (["--plot", "/nowhere/x.png"], "make it first"),
    ],
)
def test_mistakes_get_one_sentence(tiny_folder, flags, part) -> None:
    told = lens("--model", str(tiny_folder), *SMALL[:-2], *flags)
    assert isinstance(told.exception, NpftError)
    assert part in str(told.exception)
    assert "\n" not in str(told.exception)


def row(target: str, kind: str, intensity: float | None, kl: float) -> Row:
    return Row(target, kind, intensity, intensity or 0.1, 0.25, "text", kl, 12.3456, 100, 32)  # type: ignore[arg-type]


ROWS = [
    row("weights", "none", None, 0.0),
    row("weights", "gaussian", 0.1, 0.0123456),
    row("activations", "gaussian", 0.1, 0.5),
    row("activations", "rtn-4", None, 0.25),
]


def test_a_table_per_target() -> None:
    console = Console(width=120)
    with console.capture() as captured:
        console.print(report.render(ROWS, "It holds."))
    text = captured.get()
    weights, activations = text.split("activations, text")
    assert "weights, text" in weights
    assert "0.01235" in weights
    assert "12.346" in weights
    assert "rtn-4" in activations
    assert "It holds." in activations


@pytest.mark.parametrize("rows", [ROWS, [*ROWS, *(row(r.target, r.kind, 0.2, 0.9) for r in ROWS)]])
def test_a_plot_with_and_without_what_it_compares_to(rows, tmp_path) -> None:
    report.plot(rows, tmp_path / "x.svg")
    drawn = (tmp_path / "x.svg").read_text()
    assert ("that of Gaussian noise" in drawn) == (len(rows) > len(ROWS))
    assert "KL from the original" in drawn


def test_a_plot_that_cannot_be_written_is_one_sentence(tmp_path) -> None:
    refusal(lambda: report.plot(ROWS, tmp_path / "x.nonsense"), ".png")
