"""The table and the plot of ``npft lens``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from npft.errors import printable
from npft.lens.findings import curve, interpolated
from npft.lens.measuring import CLIPPED, Row
from npft.report.figures import save

BASE = "gaussian"
KINDS = {
    "gaussian": "#111827",
    "uniform": "#6b7280",
    "rademacher": "#b0b7c3",
    "growing": "#16a34a",
    "shrinking": "#dc2626",
    "clip": "#92400e",
    "outliers": "#7c3aed",
    "rest": "#c4a5fd",
}
"""Like colours for what belongs together."""

COLORS = KINDS | {
    f"clip-{share:.1%}": color for share, color in zip(CLIPPED, ("#b45309", "#f59e0b"), strict=True)
}


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
            f"{row.perplexity:.3f}" if row.perplexity < 1e4 else f"{row.perplexity:.3g}",
        )
    return table


def plot(rows: Sequence[Row], path: Path, title: str = "") -> None:
    """KL over intensity above, and below the same over that of Gaussian noise of the same norm.

    A column per target and a line per kind; own sizes are stars. Only the first text is drawn, and
    the lower row only where Gaussian noise was measured at two intensities.

    Raises:
        NpftError: the file cannot be written.
    """
    rows = [row for row in rows if row.dataset == rows[0].dataset and row.kind != "none"]
    targets = list(dict.fromkeys(row.target for row in rows))
    styles = _styles([row.kind for row in rows])
    by_target = {target: [row for row in rows if row.target == target] for target in targets}
    relative = all(len(curve(mine, BASE)) > 1 for mine in by_target.values())
    tall = 2 if relative else 1
    figure = Figure(figsize=(4.3 * len(targets) + 1.8, 3.5 * tall + 0.4), layout="constrained")
    panels = figure.subplots(tall, len(targets), sharex="col", squeeze=False)
    for axes in panels[0][1:]:
        axes.sharey(panels[0][0])
    for column, (target, mine) in enumerate(by_target.items()):
        panels[0][column].set_title(target, fontsize=10)
        _draw(panels[0][column], mine, styles, lambda _at, kl: kl)
        if relative:
            base = curve(mine, BASE)
            _draw(panels[1][column], mine, styles, partial(_over, base))
        panels[-1][column].set_xlabel("norm of the perturbation / norm of what it perturbs")
    panels[0][0].set_ylabel("KL from the original, nats per token")
    if relative:
        panels[1][0].set_ylabel("the same / that of Gaussian noise of its norm")
    handles = [
        Line2D([], [], color=color, linestyle=line, marker="." if line else "*", label=kind)
        for kind, (color, line) in styles.items()
    ]
    figure.legend(
        handles=handles, loc="outside right center", fontsize=8, title="star: own size",
        title_fontsize=8,
    )  # fmt: skip
    figure.suptitle(title, fontsize=10)
    save(figure, path)


def _styles(kinds: Sequence[str]) -> dict[str, tuple[str, Any]]:
    """A colour and a line for each kind: quantizers are dashed, what has no line is a star."""
    others = iter([f"C{index}" for index in (0, 1, 9, 6, 8, 4)] * len(kinds))
    return {
        kind: (COLORS[kind], "-" if kind in KINDS else "")
        if kind in COLORS
        else (next(others), "--")
        for kind in dict.fromkeys(kinds)
    }


def _draw(
    axes: Any,
    rows: Sequence[Row],
    styles: Mapping[str, tuple[str, Any]],
    height: Callable[[float, float], float],
) -> None:
    for kind, (color, line) in styles.items():
        points = sorted(curve(rows, kind).items())
        if points:
            heights = [height(*point) for point in points]
            axes.plot([at for at, _ in points], heights, line, color=color, marker=".", lw=1.2)
        for row in rows:
            if row.kind == kind and row.intensity is None and row.kl > 0:
                axes.plot(row.norm, height(row.norm, row.kl), "*", color=color, markersize=10)
    axes.set_xscale("log")
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 1000 * low else (1,)))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.3)


def _over(base: dict[float, float], at: float, kl: float) -> float:
    """``kl`` over that of the noise whose costs are ``base``, two at least, at the norm ``at``."""
    same = interpolated(base, at)
    assert same is not None
    return kl / same
