"""``report.html``: one run on one page, without network or scripts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from npft.artifacts import Report, Row
from npft.report import about, plots, table
from npft.report.cells import MODELS, Point, change, points, worth
from npft.report.html import Number, fill, finite
from npft.report.reading import BENCH, RESULTS, Found
from npft.report.tasks import setting


def render(found: Found) -> str:
    """The page of one run."""
    report = found.report
    data: dict[str, Any] = {RESULTS: finite(asdict(report))}
    if found.bench is not None:
        data[BENCH] = finite(found.bench.model_dump())
    answered = [row for row in report.rows if row.questions]
    return fill(
        "run.html.j2",
        title=_title(found),
        verdict=table.verdict(report.rows),
        summary=_summary(found),
        about=about.sections(found),
        remarks=table.remarks(report),
        quality=[_quality(report, text) for text in texts(report)],
        tasks=list(_tasks(report)),
        task_models=_present(answered),
        plots=list(_plots(found)),
        data=data,
    )


def texts(report: Report) -> list[str]:
    """The texts that were evaluated on."""
    return list(dict.fromkeys(row.dataset for row in report.rows if row.metric == "kl"))


def sources(rows: Sequence[Row]) -> dict[tuple[str, str, str, str], tuple[Row, str]]:
    """Each number and its place, by text, metric, setting and model."""
    return {
        (row.dataset, row.metric, setting(row), row.model): (row, f"rows[{index}].value")
        for index, row in enumerate(rows)
    }


def frontiers(report: Report, text: str) -> dict[str, dict[str, list[Point]]]:
    """What :func:`npft.report.plots.frontier` draws: by model and quantizer."""
    found = {model: points(report.rows, text, model) for model in MODELS}
    return {model: some for model, some in found.items() if some}


def _title(found: Found) -> str:
    model = str(found.settings.get("model", found.name)).rstrip("/").rpartition("/")[2]
    return f"{model}, made robust to quantization"


def _summary(found: Found) -> str:
    """The run in a line."""
    settings, report = found.settings, found.report
    parts = [f"{word} {settings[word]}" for word in ("recipe", "seed") if word in settings]
    if report.seconds:
        parts.append(f"{sum(report.seconds.values()):.0f} s")
    peak = report.environment.get("peak_device_memory_gb", report.environment.get("peak_memory_gb"))
    if peak is not None:
        parts.append(f"{peak} GB at most")
    return " · ".join(parts)


def _present(rows: Sequence[Row]) -> list[str]:
    return [model for model in MODELS if any(row.model == model for row in rows)]


def _quality(report: Report, text: str) -> dict[str, Any]:
    here = [row for row in report.rows if row.dataset == text]
    known = sources(report.rows)
    models = _present(here)
    original, tuned = (points(report.rows, text, model) for model in ("original", "tuned"))
    lines = []
    for which in dict.fromkeys(setting(row) for row in here):
        rows = {row.model: row for row in here if (setting(row), row.metric) == (which, "kl")}
        values = {model: row.value for model, row in rows.items()}
        cells = []
        for model in models:
            perplexity = known.get((text, "perplexity", which, model))
            kl = known.get((text, "kl", which, model))
            best = which != "float" and model in values and values[model] == min(values.values())
            cells.append((Number.of(perplexity, ".2f"), Number.of(kl, ".4f"), best))
        some = next(row for row in here if setting(row) == which)
        index = report.rows.index(some)
        lines.append(
            {
                "setting": which,
                "bits": Number(some.avg_bits, f"{some.avg_bits:.2f}", f"rows[{index}].avg_bits"),
                "models": cells,
                "change": change(values),
                "tone": _tone(values) if which != "float" else "",
                "worth": _worth(original, tuned, rows.get("tuned")),
            }
        )
    first = here[0]
    caption = f"{text}: {first.tokens:,} tokens in windows of {first.context}"
    return {"caption": caption, "models": models, "lines": lines}


def _tone(values: dict[str, float]) -> str:
    if "tuned" not in values or "original" not in values:
        return ""
    return "good" if values["tuned"] < values["original"] else "bad"


def _worth(original: dict[str, list[Point]], tuned: dict[str, list[Point]], row: Row | None) -> str:
    """For the tuned model's row, in the family of quantizers that has its point."""
    if row is None or row.quantizer == "none":
        return ""
    own = Point(row.avg_bits, row.value)
    family = next(name for name, some in tuned.items() if own in some)
    gained = worth(original.get(family, []), own)
    return "" if gained is None else f"{gained:+.2f} bits"


def _tasks(report: Report) -> Iterator[dict[str, Any]]:
    """A block per task and metric, with a line per quantizer."""
    answered = [row for row in report.rows if row.questions]
    for task, metric in dict.fromkeys((row.dataset, row.metric) for row in answered):
        here = [row for row in answered if (row.dataset, row.metric) == (task, metric)]
        yield {
            "task": task,
            "metric": metric,
            "questions": list(_counts(report, here)),
            "lines": [
                {
                    "setting": which,
                    "models": [
                        _answer(report, (task, metric, which, model))
                        for model in _present(answered)
                    ],
                }
                for which in dict.fromkeys(setting(row) for row in here)
            ],
        }


def _counts(report: Report, rows: Sequence[Row]) -> Iterator[Number]:
    """How many questions were answered: several numbers where they differ."""
    for count, row in {row.questions: row for row in reversed(rows)}.items():
        yield Number(count, f"{count:,}", f"rows[{report.rows.index(row)}].questions")


def _answer(report: Report, key: tuple[str, str, str, str]) -> tuple[Number | None, Number | None]:
    """A task's value and its standard error, where they are known."""
    cell = sources(report.rows).get(key)
    if cell is None or cell[0].stderr is None:
        return Number.of(cell, ".4f"), None
    value, place = cell[0].stderr, cell[1].replace(".value", ".stderr")
    return Number.of(cell, ".4f"), Number(value, f"{value:.4f}", place)


def _plots(found: Found) -> Iterator[dict[str, str]]:
    report = found.report
    for text in texts(report):
        lines = frontiers(report, text)
        if lines:
            yield {
                "name": f"frontier-{texts(report).index(text)}",
                "title": f"Quality against size, on {text}",
                "caption": "Lower and further left is better. "
                "A line joins the bit widths of one quantizer.",
                "svg": plots.frontier(lines),
            }
    if any(report.losses.values()):
        yield {
            "name": "losses",
            "title": "Training losses",
            "caption": "Dots: under noise. Line: without noise. The control has no noise at all, "
            "and learns by cross-entropy.",
            "svg": plots.losses(report.losses),
        }
    seen = report.sensitivity
    if seen is not None:
        moved = seen.after / seen.before - 1 if seen.before else 0.0
        yield {
            "name": "sensitivity",
            "title": "Sensitivity of outliers, before and after",
            "caption": f"The input channels of attention and of MLP with the most of the top "
            f"{seen.share:.2%} of weights. Over all layers these weights' sensitivity "
            f"changes by {moved:+.0%}.",
            "svg": plots.sensitivity(seen.channels),
        }
        yield {
            "name": "places",
            "title": "Where the outliers sit",
            "caption": f"Share of a layer's most sensitive {seen.share:.2%} of weights by range "
            "of its input channels.",
            "svg": plots.places(seen),
        }
    decoding = [] if found.bench is None else [r for r in found.bench.rows if r.what == "decode"]
    if found.bench is not None and decoding:
        yield {
            "name": "latency",
            "title": "Latency of decoding",
            "caption": f"Batch 1, {found.bench.environment.get('gpu', 'one GPU')}.",
            "svg": plots.latency(decoding),
        }
