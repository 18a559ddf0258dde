"""The plots of a report, as SVG whose ink takes the colour of the page's text."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from matplotlib import rc_context
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import (
    FixedLocator,
    FuncFormatter,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    NullLocator,
)

from npft.artifacts import Channel, Sensitivity, StepLoss
from npft.errors import abridged, printable
from npft.report.cells import Point
from npft.report.reading import Latency

INK = "#010203"
"""Drawn by matplotlib, and replaced by ``currentColor``; nothing else has this colour."""

COLORS = {"original": "#8b95a5", "control": "#e08a1e", "tuned": "#3b82f6"}
"""Readable on light and on dark."""

HEAT = LinearSegmentedColormap.from_list(
    "heat", [(0.23, 0.51, 0.96, 0.04), (0.23, 0.51, 0.96, 0.7), (0.95, 0.45, 0.1, 1.0)]
)
"""From the page's ground by blue to orange."""

STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "npft",
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "#8b95a5",
    "grid.alpha": 0.3,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "lines.markersize": 4,
}


def losses(by_model: Mapping[str, Sequence[StepLoss]]) -> str:
    """Training losses of each step: noisy as dots, clean as a line."""
    with rc_context(STYLE):
        figure = _figure()
        axes = figure.subplots()
        every: list[float] = []
        for model, steps in by_model.items():
            color = COLORS.get(model)
            noisy = {step.step: step.noisy for step in steps if step.noisy is not None}
            clean = {step.step: step.clean for step in steps if step.clean is not None}
            if noisy and noisy != clean:
                axes.plot(
                    list(noisy), list(noisy.values()), ".", color=color, alpha=0.5,
                    label=_plain(f"{model}, noisy"),
                )  # fmt: skip
            if clean:
                label = model if clean == noisy else f"{model}, clean"
                axes.plot(list(clean), list(clean.values()), color=color, label=_plain(label))
            every += [*noisy.values(), *clean.values()]
        _log_if_wide(axes, every)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.set_xlabel("step")
        axes.set_ylabel("loss, nats per token")
        axes.legend()
        return _svg(figure, "losses")


def frontier(by_model: Mapping[str, Mapping[str, Sequence[Point]]]) -> str:
    """KL against average bits: a colour per model, a marker per quantizer."""
    markers = "osD^vP*X<>"
    names = list(dict.fromkeys(name for some in by_model.values() for name in some))
    with rc_context(STYLE):
        figure = _figure()
        axes = figure.subplots()
        for index, (model, quantizers) in enumerate(by_model.items()):
            for name, points in quantizers.items():
                axes.plot(
                    [point.bits for point in points],
                    [point.kl for point in points],
                    marker=markers[names.index(name) % len(markers)],
                    color=COLORS.get(model, f"C{index}"),
                    linewidth=1.2,
                )
        for index, model in enumerate(by_model):
            axes.plot([], [], color=COLORS.get(model, f"C{index}"), label=_plain(model))
        for index, name in enumerate(names):
            axes.plot(
                [], [], linestyle="none", marker=markers[index % len(markers)], color=INK,
                label=_plain(name),
            )  # fmt: skip
        _log(axes)
        axes.set_xlabel("average bits per weight, tables included")
        axes.set_ylabel("KL to the original, nats per token")
        axes.legend(ncols=2)
        return _svg(figure, "frontier")


def sensitivity(channels: Sequence[Channel]) -> str:
    """The most sensitive weights of one input channel, before and after (Figure 3)."""
    with rc_context(STYLE):
        figure = _figure(3.0 * len(channels))
        for axes, channel in zip(_panels(figure, len(channels)), channels, strict=True):
            axes.vlines(channel.outputs, channel.after, channel.before, color=INK, alpha=0.25)
            size = 4 if len(channel.outputs) < 100 else 2
            axes.plot(channel.outputs, channel.before, "o", color=COLORS["original"], ms=size)
            axes.plot(channel.outputs, channel.after, "o", color=COLORS["tuned"], ms=size)
            axes.plot([], [], "o", color=COLORS["original"], label="original")
            axes.plot([], [], "o", color=COLORS["tuned"], label="tuned")
            if min([*channel.before, *channel.after]) > 0:
                _log(axes)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
            axes.set_title(_plain(f"{channel.layer}, input {channel.input}"), fontsize=9)
            axes.set_xlabel("output channel")
            axes.set_ylabel("sensitivity")
            axes.legend()
        return _svg(figure, "sensitivity")


def places(found: Sensitivity) -> str:
    """Where the most sensitive weights are: a panel per kind of layer, a row per block."""
    kinds: dict[str, list[list[float]]] = {}
    for name, counts in found.places.items():
        shares = [count / max(1, sum(counts)) for count in counts]
        kinds.setdefault(name.rpartition(".")[2], []).append(shares)
    most = max(share for blocks in kinds.values() for shares in blocks for share in shares)
    rows = -(-len(kinds) // 2)
    with rc_context({**STYLE, "axes.grid": False}):
        figure = _figure(1.6 * rows + 0.9)
        panels = figure.subplots(rows, 2, squeeze=False, sharex=True, sharey=True).flatten()
        for axes, (kind, blocks) in zip(panels, kinds.items(), strict=False):
            drawn = axes.imshow(
                blocks, aspect="auto", cmap=HEAT, extent=(0, 1, len(blocks), 0),
                norm=PowerNorm(0.5, vmin=0, vmax=most), interpolation="nearest",
            )  # fmt: skip
            axes.set_title(_plain(kind), fontsize=8)
            axes.yaxis.set_major_locator(MaxNLocator(3, integer=True))
        for axes in panels[max(0, len(kinds) - 2) : len(kinds)]:
            axes.tick_params(labelbottom=True)
        for axes in panels[len(kinds) :]:
            axes.set_visible(False)
        figure.supxlabel("input channel, as a share of the layer's", fontsize=8)
        figure.supylabel("block", fontsize=8)
        bar = figure.colorbar(drawn, ax=panels, location="top", aspect=40, shrink=0.6)
        bar.ax.xaxis.set_major_locator(FixedLocator([0, 0.04, 0.16, 0.36, 0.64, 1]))
        bar.ax.xaxis.set_minor_locator(NullLocator())
        bar.ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
        bar.set_label("of a layer's outliers", fontsize=8)
        return _svg(figure, "places")


def latency(rows: Sequence[Latency]) -> str:
    """Milliseconds per token over length, with the floor that memory sets as dots."""
    with rc_context(STYLE):
        figure = _figure()
        axes = figure.subplots()
        for index, variant in enumerate(dict.fromkeys(row.variant for row in rows)):
            mine = sorted((r for r in rows if r.variant == variant), key=lambda row: row.tokens)
            at = [row.tokens for row in mine]
            color = f"C{index % 10}"
            axes.plot(at, [r.milliseconds for r in mine], "o-", color=color, label=_plain(variant))
            axes.plot(at, [r.floor_ms for r in mine], ":", color=color)
        axes.set_xscale("log", base=2)
        lengths = sorted({row.tokens for row in rows})
        axes.set_xticks(lengths, [str(length) for length in lengths])
        axes.set_ylim(bottom=0)
        axes.set_xlabel("tokens generated (dotted: bandwidth floor)")
        axes.set_ylabel("milliseconds per token")
        axes.legend()
        return _svg(figure, "latency")


def _figure(height: float = 3.2) -> Figure:
    # As wide as a phone, so that its text need not shrink there.
    return Figure(figsize=(4.2, height), layout="constrained")


def _panels(figure: Figure, rows: int) -> Iterable[Any]:
    panels: Iterable[Any] = figure.subplots(rows, 1, squeeze=False).flatten()
    return panels


def _log_if_wide(axes: Any, values: Sequence[float]) -> None:
    if values and min(values) > 0 and max(values) > 20 * min(values):
        _log(axes)


def _log(axes: Any) -> None:
    """A logarithmic axis whose labels are numbers, also within a power of ten."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    steps = (1, 2, 5) if high < 300 * low else (1,)
    axes.yaxis.set_major_locator(LogLocator(subs=steps, numticks=12))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _plain(name: str) -> str:
    """A name that matplotlib takes for no formula, and that XML can hold."""
    return abridged(printable(name)).replace("$", r"\$")


def _svg(figure: Figure, name: str) -> str:
    """The ``<svg>`` element alone: the page gives it a size, and ``name`` makes its ids unique."""
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{name}-", text)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, count=1, flags=re.DOTALL)
    return re.sub(r' (width|height)="[\d.]+pt"', "", text, count=2)
