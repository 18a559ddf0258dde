"""Which findings of Gong et al. (arXiv 2403.06408) hold, computed from the rows."""

from __future__ import annotations

import math
from collections.abc import Sequence

from npft.lens.measuring import CLIPPED, Row

SHAPES = ("gaussian", "uniform", "rademacher")
LEAST = 1e-9
"""KL below this, in nats, is rounding."""


def reading(rows: Sequence[Row]) -> str:
    """One paragraph over all targets and texts; findings without their rows are left out."""
    parts = []
    for target, dataset in dict.fromkeys((row.target, row.dataset) for row in rows):
        mine = [row for row in rows if (row.target, row.dataset) == (target, dataset)]
        clean = next(row for row in rows if row.kind == "none" and row.dataset == dataset)
        said = [_shape(mine), _magnitude(mine), _where(mine), _clip(mine, clean), _root(mine)]
        told = "; ".join(sentence for sentence in said if sentence)
        if told:
            parts.append(f"On {target} ({dataset}): {told}.")
    return " ".join(parts)


def curve(rows: Sequence[Row], kind: str) -> dict[float, float]:
    """KL by intensity of a matched kind."""
    matched = [row for row in rows if row.kind == kind]
    return {row.intensity: max(row.kl, LEAST) for row in matched if row.intensity is not None}


def _shape(rows: Sequence[Row]) -> str:
    curves = [curve(rows, kind) for kind in SHAPES]
    if not all(curves) or len(curves[0]) < 2:
        return ""
    spreads = [max(c[x] for c in curves) / min(c[x] for c in curves) for x in curves[0]]
    low, high = min(curves[0]), max(curves[0])
    growth = curves[0][high] / curves[0][low]
    holds = growth > max(spreads)
    return (
        f"size matters more than shape: {_verdict(holds)} (KL grows {times(growth)} from "
        f"intensity {low:g} to {high:g}, and differs by {times(max(spreads))} at most between "
        f"{', '.join(SHAPES)})"
    )


def _magnitude(rows: Sequence[Row]) -> str:
    return _cheaper(
        rows, "noise growing with |x| is cheaper than shrinking", "growing", "shrinking"
    )


def _where(rows: Sequence[Row]) -> str:
    return _cheaper(rows, "outliers bear a norm better than the rest", "outliers", "rest")


def _cheaper(rows: Sequence[Row], claim: str, one: str, other: str) -> str:
    """Holds where ``one`` costs less at every intensity."""
    first, second = curve(rows, one), curve(rows, other)
    if not first or not second:
        return ""
    ratios = {x: first[x] / second[x] for x in sorted(first)}
    lower = sum(ratio < 1 for ratio in ratios.values())
    mixed = f"holds at {lower} of {len(ratios)} intensities"
    verdict = {len(ratios): _verdict(True), 0: _verdict(False)}.get(lower, mixed)
    listed = ", ".join(f"{times(ratio)} at {x:g}" for x, ratio in ratios.items())
    return f"{claim}: {verdict} (KL {listed})"


def times(factor: float) -> str:
    """Such as x0.38, x1.27 or x169."""
    return f"x{factor:.0f}" if factor >= 10 else f"x{factor:.2f}"


def _verdict(holds: bool) -> str:
    return "holds" if holds else "does not hold"


def _clip(rows: Sequence[Row], clean: Row) -> str:
    kind = f"clip-{CLIPPED[0]:.1%}"
    row = next((row for row in rows if row.kind == kind), None)
    if row is None:
        return ""
    worse = row.perplexity / clean.perplexity
    changed = f"multiplies perplexity by {worse:.0f}" if worse >= 10 else (
        f"changes perplexity by {worse - 1:+.1%}"
    )  # fmt: skip
    text = f"clipping the largest {CLIPPED[0]:.1%} {changed}"
    same = interpolated(curve(rows, "gaussian"), row.norm)
    if same is None:
        return text
    return (
        f"{text}, its KL {times(row.kl / same)} that of Gaussian noise of its norm, {row.norm:.3f}"
    )


def _root(rows: Sequence[Row]) -> str:
    """Nonuniform against RTN at equal bits and groups."""
    own = {row.kind: row for row in rows if row.intensity is None}
    told = []
    for label, row in own.items():
        name, _, rest = label.partition("-")
        rival = own.get(f"rtn-{rest}")
        if name == "nonuniform" and rival is not None:
            better = "beats" if row.kl < rival.kl else "loses to"
            told.append(
                f"{label} {better} {rival.kind} (KL {row.kl:.3g} and {rival.kl:.3g}, norms "
                f"{row.norm:.3f} and {rival.norm:.3f}, correlation with |x| "
                f"{row.correlation:.2f} and {rival.correlation:.2f})"
            )
    return ", ".join(told)


def interpolated(known: dict[float, float], intensity: float) -> float | None:
    """KL at an intensity on the power law through its neighbours; the ends' laws reach beyond."""
    points = sorted((math.log(x), math.log(y)) for x, y in known.items())
    if len(points) < 2 or intensity <= 0:
        return None
    at = math.log(intensity)
    index = min(max(sum(x < at for x, _ in points), 1), len(points) - 1)
    (x0, y0), (x1, y1) = points[index - 1], points[index]
    return math.exp(y0 + (y1 - y0) * (at - x0) / (x1 - x0))
