"""The closing table: what each quantizer does to the original, the control and the tuned model."""

from __future__ import annotations

from dataclasses import replace
from statistics import geometric_mean

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from npft.artifacts import Report, Row
from npft.errors import printable
from npft.report import tasks
from npft.report.cells import MODELS, by_cell, change
from npft.report.tasks import setting


def render(report: Report) -> RenderableType:
    """One table per text, what is not available and what went otherwise, and the verdict."""
    report = without_controls(report)
    texts = list(dict.fromkeys(row.dataset for row in report.rows if row.metric == "perplexity"))
    parts: list[RenderableType] = [_table(report, text) for text in texts]
    answered = [row for row in report.rows if row.questions]
    if answered:
        parts.append(tasks.table(answered, MODELS))
    parts += [Text(line) for line in remarks(report)]
    return Group(*parts, Text(verdict(report.rows)))


def without_controls(report: Report) -> Report:
    """The same with every name as :func:`npft.errors.printable` shows it."""
    rows = [
        replace(
            row,
            model=printable(row.model),
            quantizer=printable(row.quantizer),
            dataset=printable(row.dataset),
            metric=printable(row.metric),
            variant=printable(row.variant),
        )
        for row in report.rows
    ]
    unavailable = {printable(name): printable(why) for name, why in report.unavailable.items()}
    notes = [printable(note) for note in report.notes]
    return replace(report, rows=rows, unavailable=unavailable, notes=notes)


def remarks(report: Report) -> list[str]:
    """What is not available and what went otherwise than asked, a sentence each."""
    missing = [f"{name}: not available: {why}" for name, why in report.unavailable.items()]
    return missing + report.notes


def verdict(rows: list[Row]) -> str:
    """In how many of the quantized cells tuning has the lowest KL, in one sentence.

    The average is the geometric mean of tuned over untuned, which one cell of nearly no KL, as 8
    bits have it, moves less; cells without any KL have no ratio.
    """
    cells = by_cell(rows, "kl")
    quantized = [values for (_, which), values in cells.items() if which != "float"]
    compared = [values for values in quantized if "tuned" in values and "original" in values]
    if not compared:
        return "Nothing to compare: no quantized cell has both the original and the tuned model."
    won = sum(values["tuned"] == min(values.values()) for values in compared)
    rivals = "the untuned model and the control" if "control" in compared[0] else "no tuning"
    ratios = [
        values["tuned"] / values["original"]
        for values in compared
        if values["tuned"] > 0 and values["original"] > 0
    ]
    if not ratios:
        return f"NPFT beats {rivals} in {won} of {len(compared)} quantized cells."
    kept = geometric_mean(ratios)
    moved = f"{abs(1 - kept):.0%} {'less' if kept < 1 else 'more'}"
    return (
        f"NPFT beats {rivals} in {won} of {len(compared)} quantized cells; "
        f"KL to the original is {moved} than untuned, on average."
    )


def _table(report: Report, text: str) -> Table:
    here = [row for row in report.rows if row.dataset == text]
    tokens, context = here[0].tokens, here[0].context
    present = [model for model in MODELS if any(row.model == model for row in here)]
    kl, perplexity = by_cell(here, "kl"), by_cell(here, "perplexity")
    table = Table(
        title=Text(
            f"{text}: perplexity and KL to the original (nats/token), {tokens:,} tokens, "
            f"context {context}",
            style="table.title",
        ),
        title_justify="left",
    )
    table.add_column("quantizer")
    table.add_column("bits/weight", justify="right")
    for model in present:
        table.add_column(f"{model}\nppl", justify="right")
        table.add_column("\nKL", justify="right")
    table.add_column("KL, tuned\nvs original", justify="right")
    for key, values in kl.items():
        bits = {r.avg_bits for r in here if setting(r) == key[1]}
        line = [Text(key[1]), Text(f"{max(bits):.2f}")]
        for model in present:
            best = values.get(model) == min(values.values()) and key[1] != "float"
            own = perplexity.get(key, {}).get(model)
            line += [Text(_number(own)), Text(_kl(values.get(model)), "bold" if best else "")]
        table.add_row(*line, change(values))
    for name in report.unavailable:
        table.add_row(Text(name), "", "n/a")
    return table


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if value < 1e4 else f"{value:.3g}"


def _kl(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
