"""What was run, for the end of a page: words and their values, by section."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from npft.report.reading import Found

Words = list[tuple[str, str]]

UNITS = {
    "peak_memory_gb": "peak memory, GB",
    "peak_device_memory_gb": "peak GPU memory, GB",
    "device": "device used",
}


def sections(found: Found) -> list[tuple[str, Words]]:
    """Headings with what stands below them; those without anything are left out."""
    parts = {
        "Model and texts": list(_model(found.settings)),
        "Recipe": list(_recipe(found.settings)),
        "Time, memory and versions": list(_machine(found)),
    }
    return [(heading, words) for heading, words in parts.items() if words]


def _model(settings: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for word in ("model", "dtype"):
        if word in settings:
            yield word, str(settings[word])
    if "calibration" in settings:
        windows = f"{settings.get('samples')} × {settings.get('context')} tokens"
        yield "calibration", f"{settings['calibration']}, {windows}"
    for text, source in settings.get("evaluate", {}).items():
        yield f"evaluated on {text}", str(source)


def _recipe(settings: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for word in ("recipe", "seed", "gamma", "scope"):
        if word in settings:
            yield word, str(settings[word])
    for word in ("scorer", "sampler", "objective"):
        if word in settings:
            yield word, str(settings[word].get("name"))
            yield from _options(f"{word}: ", settings[word])
    yield from _options("tuning: ", settings.get("tuning", {}))


def _options(before: str, options: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for word, value in options.items():
        if word != "name" and value not in ([], False):
            yield before + word.replace("_", " "), _said(value)


def _said(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "yes" if value is True else str(value)


def _machine(found: Found) -> Iterator[tuple[str, str]]:
    seconds = found.report.seconds
    if seconds:
        parts = ", ".join(f"{stage} {each:.0f}" for stage, each in seconds.items())
        yield "seconds", f"{sum(seconds.values()):.0f} ({parts})"
    provenance = {**found.settings.get("provenance", {}), **found.report.environment}
    for word, value in provenance.items():
        yield UNITS.get(word, word.replace("_", " ")), str(value)
