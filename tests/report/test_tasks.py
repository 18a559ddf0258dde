"""The table of tasks, on rows that are known."""

from rich.console import Console

from npft.artifacts import Report, Row
from npft.report import table


def _row(model: str, quantizer: str, value: float, stderr: float | None) -> Row:
    bits = 32 if quantizer == "none" else 4
    return Row(model, quantizer, bits, 0, float(bits), "arc_easy", "acc", value, 0, 0, stderr, 2376)


def test_values_errors_and_the_change() -> None:
    rows = [
        _row("original", "none", 0.6, 0.01),
        _row("original", "rtn", 0.5, 0.0103),
        _row("tuned", "rtn", 0.5625, None),
    ]
    console = Console(width=140)
    with console.capture() as captured:
        console.print(table.render(Report(rows)))
    shown = captured.get()
    (quantized,) = (line for line in shown.splitlines() if "rtn-4" in line)
    cells = [cell.strip() for cell in quantized.split("│")]
    assert cells[3:-1] == ["rtn-4", "0.5000 ± 0.0103", "0.5625", "+0.0625"]
    assert "arc_easy (2,376)" in shown
    assert "0.6000 ± 0.0100" in shown
    assert "control" not in shown
    assert "perplexity" not in shown
