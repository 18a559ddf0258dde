"""The schedule against the paper's counts."""

from __future__ import annotations

from collections import Counter

import pytest

from npft_tskd.schedule import Schedule


def test_the_papers_counts() -> None:
    """240 epochs, every fifth counts: 36 memories, three for each of 12 reviews."""
    schedule = Schedule()
    counts = Counter(schedule.role(epoch) for epoch in range(240))
    assert counts == {"plain": 192, "memory": 36, "review": 12}
    assert schedule.reviews(240) == list(range(19, 240, 20))


def test_each_review_has_its_memories() -> None:
    schedule = Schedule(interval=2, memories=4)
    roles = [schedule.role(epoch) for epoch in range(60)]
    assert schedule.reviews(60) == [9, 19, 29, 39, 49, 59]
    for review in schedule.reviews(60):
        assert roles[review - 9 : review].count("memory") == 4
        assert roles[review - 1] == "plain"


def test_the_shortest() -> None:
    assert [Schedule(1, 1).role(epoch) for epoch in range(4)] == ["memory", "review"] * 2


@pytest.mark.parametrize("wrong", [(0, 3), (5, 0)])
def test_bad_ones_are_refused(wrong: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="both are at least 1"):
        Schedule(*wrong)
