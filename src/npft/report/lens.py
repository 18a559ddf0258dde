"""The table and the plot of ``npft lens``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from npft.errors import printable
from npft.lens.findings import curve
from npft.lens.measuring import Row
from npft.report.figures import save


def render(rows: Sequence[Row], reading: str) -> RenderableType:
    """A table per target and text, and the reading below."""
    parts: list[RenderableType] = []
    for target, dataset in dict.fromkeys((row.target, row.dataset) for row in rows):
        chosen = [row for row in rows if (row.target, row.dataset) == (target, dataset)]
        parts.append(_table(printable(f"{target}, {dataset}"), chosen))
    return Group(*parts, Text(reading))


def _table(title: str, rows: Sequence[Row]) -> Table:
    table = Table(title=Text(title, style="table.title"), title_justify="left")
    table.add_column("perturbation", no_wrap=True)
    for column in ("intensity", "norm", "corr. with |x|", "KL, nats", "perplexity"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            Text(row.kind),
            "own" if row.intensity is None else f"{row.intensity:g}",
            f"{row.norm:.4f}",
            f"{row.correlation:+.2f}",
            f"{row.kl:.5f}",
            f"{row.perplexity:.3f}",
        )
    return table


def plot(rows: Sequence[Row], path: Path, title: str = "") -> None:
    """KL over intensity, a panel per target and a line per kind; own sizes are stars.

    Only the first text is drawn.

    Raises:
        NpftError: the file cannot be written.
    """
    rows = [row for row in rows if row.dataset == rows[0].dataset and row.kind != "none"]
    targets = list(dict.fromkeys(row.target for row in rows))
    kinds = list(dict.fromkeys(row.kind for row in rows))
    figure = Figure(figsize=(4.6 * len(targets) + 2, 4.6), layout="constrained")
    panels = figure.subplots(1, len(targets), sharey=True, squeeze=False)[0]
    for axes, target in zip(panels, targets, strict=True):
        mine = [row for row in rows if row.target == target]
        for index, kind in enumerate(kinds):
            color, line = f"C{index % 10}", "-" if index < 10 else "--"
            points = sorted(curve(mine, kind).items())
            if points:
                axes.plot(*zip(*points, strict=True), line, color=color, marker=".", label=kind)
            own = [row for row in mine if row.kind == kind and row.intensity is None]
            for row in own:
                label = None if points else kind
                axes.plot(row.norm, row.kl, "*", color=color, markersize=11, label=label)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_title(target, fontsize=10)
        axes.set_xlabel("norm of the perturbation / norm of what it perturbs")
        axes.grid(alpha=0.3, which="both")
    panels[0].set_ylabel("KL from the original, nats per token")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", fontsize=8, title="star: own size")
    figure.suptitle(title, fontsize=10)
    save(figure, path)
