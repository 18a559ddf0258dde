"""The tables and the plot of ``npft bench``."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from npft.bench.measure import Line
from npft.bench.paper import NOTE, TABLE_3
from npft.bench.result import Result
from npft.errors import printable
from npft.report.figures import save


def render(result: Result) -> RenderableType:
    """Everything that was found, for people."""
    gpu = result.environment.get("gpu", "GPU")
    head = f"{result.source}; {gpu}, read bandwidth {result.bandwidth / 1e12:.2f} TB/s, batch 1"
    parts: list[RenderableType] = [Text(printable(head))]
    linear = [line for line in result.lines if line.what == "linear"]
    decode = [line for line in result.lines if line.what == "decode"]
    if linear:
        parts.append(_floors("All linear layers, one token", linear))
    if decode:
        shortest = min(line.tokens for line in decode)
        chosen = [line for line in decode if line.tokens == shortest]
        parts += [_floors(f"Decoding {shortest} tokens, per token", chosen), _lengths(decode)]
        parts += _beside_paper(decode)
    parts += [
        Text(
            f"{name}: {one.share:.1%} of 128 greedy tokens are those of the dequantized model, "
            f"{one.decided:.0%} of the {one.clear} that rounding does not decide; logits differ "
            f"by {one.error:.1e} at most"
        )
        for name, one in result.agreements.items()
    ]
    parts += [Text(f"not measured: {name} ({why})") for name, why in result.missing.items()]
    return Group(*parts)


def plot(result: Result, path: Path) -> None:
    """Milliseconds per token over the length of the output, one line per variant.

    Raises:
        NpftError: the file cannot be written.
    """
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    decode = [line for line in result.lines if line.what == "decode"]
    for variant in dict.fromkeys(line.variant for line in decode):
        lines = [line for line in decode if line.variant == variant]
        tokens = [line.tokens for line in lines]
        (drawn,) = axes.plot(tokens, [line.milliseconds for line in lines], "o-", label=variant)
        floor = [line.floor_ms for line in lines]
        axes.plot(tokens, floor, ":", color=drawn.get_color(), linewidth=1)
    axes.set_xscale("log", base=2)
    axes.set_xticks(
        sorted({line.tokens for line in decode}),
        [str(n) for n in sorted({d.tokens for d in decode})],
    )
    axes.set_ylim(bottom=0)
    axes.set_xlabel("tokens generated (dotted: bandwidth floor)")
    axes.set_ylabel("milliseconds per token")
    axes.set_title(f"{result.source}, {result.environment.get('gpu', '')}, batch 1", fontsize=10)
    figure.legend(fontsize=8, loc="outside lower center", ncols=3)
    save(figure, path)


def _floors(title: str, lines: list[Line]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("variant")
    for column in ("ms", "spread", "GB to read", "floor, ms", "of floor", "peak GB"):
        table.add_column(column, justify="right")
    for line in lines:
        table.add_row(
            Text(printable(line.variant)),
            f"{line.milliseconds:.3f}",
            f"{line.least:.3f}-{line.most:.3f}",
            f"{line.bytes / 1e9:.2f}",
            f"{line.floor_ms:.3f}",
            f"{line.fraction:.0%}",
            f"{line.peak_gb:.2f}" if line.peak_gb else "-",
        )
    return table


def _lengths(lines: list[Line]) -> Table:
    lengths = sorted({line.tokens for line in lines})
    table = Table(title="Seconds by length of output (ms per token)", title_justify="left")
    table.add_column("variant")
    for length in lengths:
        table.add_column(str(length), justify="right")
    for variant in dict.fromkeys(line.variant for line in lines):
        mine = {line.tokens: line for line in lines if line.variant == variant}
        cells = [f"{mine[n].seconds:.3f} ({mine[n].milliseconds:.2f})" for n in lengths]
        table.add_row(Text(printable(variant)), *cells)
    return table


def _beside_paper(lines: list[Line]) -> list[RenderableType]:
    ours = {line.variant: line for line in lines if line.tokens == 128}
    if not any(row.ours in ours for row in TABLE_3):
        return []
    table = Table(title="The paper's Table 3, 4 bits, 128 tokens", title_justify="left")
    table.add_column("model")
    table.add_column("method")
    for column in ("paper, s", "paper, GB", "here, s", "here, peak GB"):
        table.add_column(column, justify="right")
    for row in TABLE_3:
        line = ours.get(row.ours or "")
        here = [f"{line.seconds:.3f}", f"{line.peak_gb:.2f}"] if line else ["-", "-"]
        table.add_row(row.model, row.method, f"{row.seconds:.2f}", f"{row.gigabytes:.2f}", *here)
    return [table, Text(NOTE)]
