"""The reading says what the numbers say."""

from __future__ import annotations

import pytest

from npft.lens.findings import interpolated, reading
from npft.lens.measuring import Row


def row(kind: str, intensity: float | None, kl: float, ppl: float = 10.0, norm=0.1) -> Row:
    return Row("weights", kind, intensity, intensity or norm, 0.0, "text", kl, ppl, 100, 32)


CLEAN = row("none", None, 0.0)


def curve(kind: str, *costs: float) -> list[Row]:
    return [row(kind, x, kl) for x, kl in zip((0.1, 0.2), costs, strict=True)]


def shapes(spread: float) -> list[Row]:
    return [
        *curve("gaussian", 0.1, 0.4),
        *curve("uniform", 0.1, 0.4),
        *curve("rademacher", 0.1 * spread, 0.4),
    ]


@pytest.mark.parametrize(("spread", "verdict"), [(1.1, "holds"), (5.0, "does not hold")])
def test_size_and_shape(spread: float, verdict: str) -> None:
    told = reading([CLEAN, *shapes(spread)])
    assert f"size matters more than shape: {verdict} (KL grows x4.00" in told
    assert f"x{spread:.2f} at most" in told


@pytest.mark.parametrize(
    ("one", "verdict"),
    [
        ((0.1, 0.2), "holds (KL x0.50"),
        ((0.4, 0.8), "does not hold (KL x2.00"),
        ((0.1, 0.8), "1 of 2"),
    ],
)
def test_comparisons(one: tuple[float, float], verdict: str) -> None:
    rows = [*curve("growing", *one), *curve("shrinking", 0.2, 0.4)]
    assert verdict in reading([CLEAN, *rows])
    rows = [*curve("outliers", *one), *curve("rest", 0.2, 0.4)]
    assert verdict in reading([CLEAN, *rows])


def test_clipping_beside_noise_of_its_norm() -> None:
    clip = row("clip-0.1%", None, 0.9, ppl=12.5, norm=0.15)
    told = reading([CLEAN, *curve("gaussian", 0.1, 0.4), clip])
    assert "perplexity by +25.0%" in told
    assert "x4.00 that of Gaussian" in told  # 0.4 (0.15 / 0.2)^2 = 0.225


def test_large_factors_are_told_as_such() -> None:
    clip = row("clip-0.1%", None, 7.0, ppl=23480.0)
    assert "multiplies perplexity by 2348" in reading([CLEAN, clip])


def test_the_root_beside_rounding() -> None:
    told = reading([CLEAN, row("rtn-4", None, 0.2), row("nonuniform-4", None, 0.3)])
    assert "nonuniform-4 loses to rtn-4 (KL 0.3 and 0.2" in told
    told = reading([CLEAN, row("rtn-4-g64", None, 0.2), row("nonuniform-4-g64", None, 0.1)])
    assert "nonuniform-4-g64 beats rtn-4-g64" in told
    assert not reading([CLEAN, row("rtn-4-g64", None, 0.2), row("nonuniform-4", None, 0.1)])


def test_power_laws_are_interpolated_exactly() -> None:
    known = {0.1: 3 * 0.1**2.5, 0.3: 3 * 0.3**2.5, 0.6: 3 * 0.6**2.5}
    for x in (0.05, 0.1, 0.2, 0.5, 0.9):
        assert interpolated(known, x) == pytest.approx(3 * x**2.5)
    assert interpolated({0.1: 1.0}, 0.1) is None


def test_nothing_measured_nothing_said() -> None:
    assert reading([CLEAN]) == ""
