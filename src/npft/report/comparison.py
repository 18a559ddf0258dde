"""Several runs side by side, on one page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from npft.report import plots, table
from npft.report.cells import by_cell, change, points
from npft.report.html import Number, fill
from npft.report.page import sources, texts
from npft.report.reading import Found


def render(runs: Sequence[Found]) -> str:
    """The page of several runs."""
    names = distinct([run.name for run in runs])
    every = list(dict.fromkeys(text for run in runs for text in texts(run.report)))
    return fill(
        "comparison.html.j2",
        title=f"{len(runs)} runs compared",
        runs=names,
        differences=_differences(runs),
        verdicts=[
            (name, table.verdict(run.report.rows)) for name, run in zip(names, runs, strict=True)
        ],
        tables=[_table(runs, names, text) for text in every],
        plots=[_frontier(runs, names, text, index) for index, text in enumerate(every)],
        data={},
    )


def distinct(names: Sequence[str]) -> list[str]:
    """The names, with a number where one is there twice."""
    return [
        f"{name} ({names[: index + 1].count(name)})" if names.count(name) > 1 else name
        for index, name in enumerate(names)
    ]


def _differences(runs: Sequence[Found]) -> list[tuple[str, list[str]]]:
    flat = [dict(_flat(run.settings)) for run in runs]
    words = dict.fromkeys(word for one in flat for word in one)
    lines = [(word, [one.get(word, "–") for one in flat]) for word in words]
    return [(word, values) for word, values in lines if len(set(values)) > 1 and word != "output"]


def _flat(values: Any, before: str = "") -> list[tuple[str, str]]:
    if isinstance(values, dict) and values:
        return [pair for word, value in values.items() for pair in _flat(value, f"{before}{word}.")]
    return [(before.rstrip("."), str(values))]


def _table(runs: Sequence[Found], names: Sequence[str], text: str) -> dict[str, Any]:
    cells = [by_cell(run.report.rows, "kl") for run in runs]
    known = [sources(run.report.rows) for run in runs]
    measured = {
        (row.tokens, row.context)
        for run in runs
        for row in run.report.rows
        if (row.dataset, row.metric) == (text, "kl")
    }
    lines = []
    for which in dict.fromkeys(key[1] for some in cells for key in some if key[0] == text):
        values = [some.get((text, which), {}) for some in cells]
        least = min((value["tuned"] for value in values if "tuned" in value), default=None)
        shown = []
        for name, own, value in zip(names, known, values, strict=True):
            number = Number.of(own.get((text, "kl", which, "tuned")), ".4f", name)
            best = len(measured) == 1 and which != "float" and value.get("tuned") == least
            shown.append((number, change(value), best and number is not None))
        lines.append({"setting": which, "runs": shown})
    sizes = "; ".join(f"{tokens:,} tokens in windows of {window}" for tokens, window in measured)
    return {"caption": f"{text}: {sizes}", "lines": lines}


def _frontier(runs: Sequence[Found], names: Sequence[str], text: str, index: int) -> dict[str, str]:
    lines = {
        name: points(run.report.rows, text, "tuned") for name, run in zip(names, runs, strict=True)
    }
    return {
        "name": f"frontier-{index}",
        "title": f"Quality against size, on {text}",
        "caption": "The tuned models. Lower and further left is better.",
        "svg": plots.frontier(lines),
    }
