"""The table of tasks: how each model, float and quantized, answers them."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from npft.artifacts import Row, label


def table(rows: Sequence[Row], models: Sequence[str]) -> Table:
    """A block per task and metric and a line per quantizer, each value with its standard error.

    In parentheses, how many questions were answered: several counts where they differ.
    """
    present = [model for model in models if any(row.model == model for row in rows)]
    drawn = Table(title="tasks, ± standard error", title_justify="left")
    for column in ("task", "metric", "quantizer"):
        drawn.add_column(column)
    for model in present:
        drawn.add_column(model, justify="right")
    drawn.add_column("tuned\nvs original", justify="right")
    blocks = dict.fromkeys((row.dataset, row.metric) for row in rows)
    for task, metric in blocks:
        here = [row for row in rows if (row.dataset, row.metric) == (task, metric)]
        counts = sorted({row.questions for row in here})
        name = f"{task} ({', '.join(f'{count:,}' for count in counts)})"
        for which in dict.fromkeys(setting(row) for row in here):
            line = {row.model: row for row in here if setting(row) == which}
            values = [_value(line.get(model)) for model in present]
            drawn.add_row(Text(name), Text(metric), Text(which), *values, _change(line))
            name = metric = ""
        drawn.add_section()
    return drawn


def setting(row: Row) -> str:
    """``float``, or the label of the quantizer's setting."""
    if row.quantizer == "none":
        return "float"
    return label(row.quantizer, row.bits, row.group_size, row.variant)


def _value(row: Row | None) -> str:
    if row is None:
        return "-"
    return f"{row.value:.4f}" + ("" if row.stderr is None else f" ± {row.stderr:.4f}")


def _change(line: dict[str, Row]) -> str:
    if "tuned" not in line or "original" not in line:
        return ""
    return f"{line['tuned'].value - line['original'].value:+.4f}"
