"""What is remembered, by sample and epoch."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from npft_tskd.memory import Memory


def test_samples_are_told_apart_whatever_their_order() -> None:
    memory = Memory(2)
    maps = [torch.arange(3.0).view(3, 1), torch.arange(3.0).view(3, 1, 1) * 10]
    memory.store(0, [7, 8, 9], maps)
    memory.store(4, [9, 7, 8], [stage + 100 for stage in maps])
    places, (first, second) = memory.recall([8, 9])
    assert places == [0, 1]
    assert first.flatten().tolist() == [1, 2, 102, 100]
    assert second.flatten().tolist() == [10, 20, 120, 100]
    assert second.shape == (2, 2, 1, 1)


def test_only_what_every_epoch_remembers() -> None:
    memory = Memory(2)
    memory.store(0, ["a", "b"], [torch.zeros(2, 1)])
    assert memory.recall(["a"]) == ([], [])
    memory.store(1, ["b", "c"], [torch.ones(2, 1)])
    places, (maps,) = memory.recall(["c", "a", "b"])
    assert places == [2]
    assert maps.flatten().tolist() == [0, 1]


def test_twice_in_an_epoch_is_one_memory() -> None:
    memory = Memory(1)
    memory.store(3, ["a"], [torch.zeros(1, 1)])
    memory.store(3, ["a"], [torch.ones(1, 1)])
    assert memory.recall(["a"])[1][0].item() == 1


def test_memories_are_copies_without_gradients() -> None:
    memory, maps = Memory(1), torch.ones(1, 2, requires_grad=True)
    memory.store(0, [0], [maps])
    with torch.no_grad():
        maps.mul_(5)
    kept = memory.recall([0])[1][0]
    assert kept.flatten().tolist() == [1, 1]
    assert not kept.requires_grad


@given(
    st.integers(1, 3),
    st.lists(st.tuples(st.integers(0, 12), st.lists(st.integers(0, 4), min_size=1, max_size=4))),
)
def test_state_goes_there_and_back(capacity: int, batches: list[tuple[int, list[int]]]) -> None:
    """Any history: the restored memory holds at most ``capacity`` epochs, and recalls alike."""
    memory, other = Memory(capacity), Memory(capacity)
    for number, (epoch, keys) in enumerate(sorted(batches, key=lambda batch: batch[0])):
        stages = [torch.full((len(keys), 2), float(number)), torch.rand(len(keys), 1, 1)]
        memory.store(epoch, keys, stages)
    state = memory.state()
    assert len({name.partition(".")[0] for name in state}) <= capacity
    other.load_state(state)
    ours, theirs = memory.recall(range(5)), other.recall(range(5))
    assert ours[0] == theirs[0]
    assert all(torch.equal(a, b) for a, b in zip(ours[1], theirs[1], strict=True))
