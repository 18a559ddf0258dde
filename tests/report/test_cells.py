"""What tuning is worth in bits."""

from __future__ import annotations

import pytest

from npft.artifacts import Row
from npft.report.cells import Point, change, points, worth


def law(bits: float) -> float:
    """KL falls fourfold with every bit."""
    return float(7 * 4.0**-bits)


SIZES = [Point(bits, law(bits)) for bits in (2.05, 3.05, 4.05)]


@pytest.mark.parametrize("gained", [-0.3, 0.0, 0.4, 1.0])
@pytest.mark.parametrize("bits", [2.05, 3.05, 4.05])
def test_on_the_law_the_answer_is_exact(bits: float, gained: float) -> None:
    assert worth(SIZES, Point(bits, law(bits + gained))) == pytest.approx(gained)


@pytest.mark.parametrize(
    ("tuned", "told"), [(0.15, "-25%"), (0.2, "+0%"), (1.9, "+850%"), (17.0, "x85")]
)
def test_changes(tuned: float, told: str) -> None:
    assert change({"original": 0.2, "tuned": tuned}) == told


def test_no_change_without_both_models() -> None:
    assert change({"tuned": 1.0}) == change({"original": 0.0, "tuned": 1.0}) == ""


def test_one_size_or_no_gain_from_bits_says_nothing() -> None:
    assert worth(SIZES[:1], SIZES[0]) is None
    assert worth([Point(3, 0.1), Point(4, 0.2)], Point(3, 0.05)) is None
    assert worth(SIZES, Point(3, 0.0)) is None


def test_points_are_gathered_by_quantizer_group_and_variant() -> None:
    def row(bits: int, group: int, variant: str = "", model: str = "tuned") -> Row:
        return Row(model, "rtn", bits, group, bits + 0.5, "text", "kl", 1.0 / bits, variant=variant)

    rows = [row(4, 0), row(3, 0), row(4, 64), row(4, 0, "sym"), row(4, 0, model="control")]
    found = points(rows, "text", "tuned")
    assert {name: [p.bits for p in some] for name, some in found.items()} == {
        "rtn": [3.5, 4.5],
        "rtn-g64": [4.5],
        "rtn-sym": [4.5],
    }
