"""The closing table, on rows whose verdict is known."""

from dataclasses import replace

import pytest
from rich.console import Console

from npft.artifacts import Report, Row
from npft.report import table


def _row(model: str, quantizer: str, metric: str, value: float) -> Row:
    bits = 32 if quantizer == "none" else 4
    return Row(model, quantizer, bits, 0, float(bits), "text", metric, value, 100, 10)


def _rows(original: float, control: float, tuned: float) -> list[Row]:
    rows = []
    for model, kl in [("original", original), ("control", control), ("tuned", tuned)]:
        for quantizer in ("none", "rtn"):
            rows.append(_row(model, quantizer, "perplexity", 20.0))
            rows.append(_row(model, quantizer, "kl", 0.0 if quantizer == "none" else kl))
    return rows


def _shown(rows: list[Row]) -> str:
    console = Console(width=140)
    with console.capture() as captured:
        console.print(table.render(Report(rows)))
    return captured.get()


@pytest.mark.parametrize(
    ("kl", "won", "change"),
    [
        ((0.4, 0.5, 0.3), "1 of 1", "25% less"),
        ((0.4, 0.2, 0.3), "0 of 1", "25% less"),
        ((0.4, 0.9, 0.6), "0 of 1", "50% more"),
    ],
)
def test_the_verdict_counts_cells_and_the_mean_change(kl, won, change) -> None:
    verdict = table.verdict(_rows(*kl))
    assert won in verdict
    assert change in verdict


def test_the_mean_change_is_geometric_and_needs_some_kl() -> None:
    """Halved at 4 bits and doubled at 8 is no change; a cell without any KL has no ratio."""

    def at_8_bits(kl: tuple[float, float, float]) -> list[Row]:
        return [replace(row, bits=8) for row in _rows(*kl) if row.quantizer != "none"]

    assert " 0% " in table.verdict(_rows(0.4, 0.5, 0.2) + at_8_bits((0.01, 0.5, 0.02)))
    assert "1 of 2 quantized cells; KL to the original is 50% less" in table.verdict(
        _rows(0.4, 0.5, 0.2) + at_8_bits((0.0, 0.5, 0.02))
    )
    alone = table.verdict(at_8_bits((0.0, 0.5, 0.02)))
    assert alone.endswith("in 0 of 1 quantized cells.")


def test_without_quantized_cells_there_is_no_verdict() -> None:
    assert "Nothing to compare" in table.verdict(_rows(0.4, 0.5, 0.3)[:2])


def test_the_table_has_every_setting_and_the_change() -> None:
    shown = _shown(_rows(0.4, 0.5, 0.3))
    for part in ("float", "rtn-4", "0.4000", "0.5000", "0.3000", "-25%", "100 tokens"):
        assert part in shown
