"""The numbers of a run by cell: a text, a quantizer's setting, a model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from npft.artifacts import Row
from npft.report.tasks import setting

MODELS = ("original", "control", "tuned")


def by_cell(rows: Sequence[Row], metric: str) -> dict[tuple[str, str], dict[str, float]]:
    """Values of one metric by ``(text, setting)`` and model, in the order of the rows."""
    cells: dict[tuple[str, str], dict[str, float]] = {}
    for row in rows:
        if row.metric == metric:
            cells.setdefault((row.dataset, setting(row)), {})[row.model] = row.value
    return cells


def change(values: dict[str, float]) -> str:
    """How the tuned model's value differs from the original's; empty if unknown.

    In percent, or as a factor where it is ten times as large.
    """
    if "tuned" not in values or not values.get("original"):
        return ""
    ratio = values["tuned"] / values["original"]
    return f"x{ratio:.0f}" if ratio >= 10 else f"{ratio - 1:+.0%}"


@dataclass(frozen=True)
class Point:
    """One quantized model: its size and its distance from the original."""

    bits: float
    kl: float


def points(rows: Sequence[Row], text: str, model: str) -> dict[str, list[Point]]:
    """By quantizer, and group size and variant if any, the model's points in order of size."""
    found: dict[str, list[Point]] = {}
    for row in rows:
        if (row.metric, row.dataset, row.model) == ("kl", text, model) and row.quantizer != "none":
            group = f"-g{row.group_size}" if row.group_size else ""
            family = f"{row.quantizer}{group}{'-' if row.variant else ''}{row.variant}"
            found.setdefault(family, []).append(Point(row.avg_bits, row.value))
    return {name: sorted(some, key=lambda point: point.bits) for name, some in found.items()}


def worth(untuned: Sequence[Point], tuned: Point) -> float | None:
    """How many bits per weight more the untuned model needs for the tuned one's KL.

    log KL is taken as linear in the bits between neighbours, and beyond them as the last stretch
    has it. None where fewer than two sizes are known, or more bits do not help.
    """
    known = [point for point in untuned if point.kl > 0]
    if len(known) < 2 or tuned.kl <= 0:
        return None
    index = min(max(sum(point.kl > tuned.kl for point in known), 1), len(known) - 1)
    one, two = known[index - 1], known[index]
    if two.kl >= one.kl or two.bits <= one.bits:
        return None
    slope = (two.bits - one.bits) / (math.log(two.kl) - math.log(one.kl))
    return one.bits + slope * (math.log(tuned.kl) - math.log(one.kl)) - tuned.bits
