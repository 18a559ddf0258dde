"""The parts of the bench that need no GPU, and all of it where there is one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from rich.console import Console

from npft.bench.measure import Agreement, Line
from npft.bench.result import Result
from npft.bench.shapes import FORMATS, matrices, shape_named
from npft.bench.timing import Times
from npft.cli import cli
from npft.errors import NpftError
from npft.report import bench as report


def line(what: str, variant: str, tokens: int, ms: float = 2.0) -> Line:
    return Line(what, variant, tokens, ms, ms - 0.25, ms + 0.25, 3.5e9, 1.25, 4.5)


@pytest.fixture
def result() -> Result:
    lines = [line("linear", "k-means 4-bit", 1, 1.5)]
    lines += [line("decode", "k-means 4-bit", n) for n in (128, 256)]
    lines += [line("decode", "k-means 4-bit + 0.50% outliers", n, 2.5) for n in (128, 256)]
    return Result(
        "some shape",
        3e12,
        lines,
        {"k-means 4-bit": Agreement(0.9375, 0.02, 40, 1.0)},
        {"FLUTE": "not installed"},
        {"gpu": "Some GPU"},
    )


def text(result: Result) -> str:
    console = Console(width=140)
    with console.capture() as captured:
        console.print(report.render(result))
    return captured.get()


def test_numbers_of_a_line() -> None:
    one = line("decode", "x", 128)
    assert one.fraction == 0.625
    assert one.seconds == pytest.approx(0.256)
    assert {"fraction", "seconds", "variant", "bytes"} <= one.as_row().keys()


def test_times() -> None:
    times = Times((3.0, 1.0, 2.0))
    assert times.median == 2.0
    assert times.spread == (1.0, 3.0)


def test_tables_beside_the_paper(result: Result) -> None:
    shown = text(result)
    rows = {
        tuple(cell.strip() for cell in cells[:2]): [cell.strip() for cell in cells[2:]]
        for row in shown.splitlines()
        if (cells := row.strip("│").split("│")) and len(cells) == 6
    }
    outliers = "SqueezeLLM with 0.5% outliers"
    assert rows["LLaMA-2-7B", "SqueezeLLM"] == ["4.80", "4.46", "0.256", "4.50"]
    assert rows["LLaMA-2-7B", outliers] == ["5.01", "4.74", "0.320", "4.50"]
    assert rows["OPT-1.3B", outliers] == ["2.62", "1.09", "-", "-"]
    assert "0.512 (2.00)" in shown
    assert "not measured: FLUTE (not installed)" in shown
    assert "93.8% of 128 greedy tokens" in shown
    assert "100% of the 40 that rounding does not decide" in shown


def test_json_and_plot(result: Result, tmp_path: Path) -> None:
    assert len(json.loads(json.dumps(result.as_json()))["rows"]) == len(result.lines)
    pytest.importorskip("matplotlib")
    report.plot(result, tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


def test_llama_2_7b_has_its_size() -> None:
    shape = shape_named("llama-2-7b")
    linear = shape.layers * sum(rows * columns for rows, columns in matrices(shape).values())
    assert linear + 2 * shape.vocabulary * shape.width + 65 * shape.width == 6_738_415_616
    assert len({form.name for form in FORMATS}) == len(FORMATS)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "needs a run folder or a --shape, one of the two"),
        (["x", "--shape", "tiny"], "one of the two"),
        (["--shape", "tiny", "--lengths", "1,x"], "--lengths '1,x' is not a list"),
    ],
)
def test_bad_arguments(arguments: list[str], told: str) -> None:
    failed = CliRunner().invoke(cli, ["bench", *arguments])
    assert isinstance(failed.exception, NpftError)
    assert told in str(failed.exception)


def test_unknown_shape() -> None:
    with pytest.raises(NpftError, match="shape 'x' is unknown: there is llama-2-7b, tiny"):
        shape_named("x")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu() -> None:
    failed = CliRunner().invoke(cli, ["bench", "--shape", "tiny"])
    assert "torch sees no CUDA here" in str(failed.exception)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu() -> None:
    arguments = ["--shape", "tiny", "--lengths", "8,16", "--repeats", "2", "--json"]
    done = CliRunner().invoke(cli, ["bench", *arguments, "--quiet"], catch_exceptions=False)
    found = json.loads(done.stdout)
    assert {row["what"] for row in found["rows"]} == {"linear", "decode"}
    assert all(row["milliseconds"] > 0 for row in found["rows"])
    assert found["agreements"]["k-means 4-bit"]["decided"] == 1.0
