from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from npft.seeding import derive_seed, generator, isolated_rng

PURPOSES = ["noise", "adapter", "dropout", "calibration windows", ""]


def test_seeds_do_not_depend_on_the_process() -> None:
    # printf 0/noise | sha256sum: the first eight bytes, little endian, halved
    assert derive_seed(0, "noise") == 0xFAC68593B78A9C7


def test_each_seed_and_purpose_has_its_own_seed() -> None:
    seeds = [derive_seed(seed, purpose) for seed in range(200) for purpose in PURPOSES]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_streams_of_two_purposes_are_uncorrelated() -> None:
    count = 20_000
    streams = [
        torch.randn(count, generator=generator(seed, p)) for seed in (0, 1) for p in PURPOSES
    ]
    correlation = torch.corrcoef(torch.stack(streams)) - torch.eye(len(streams))
    assert correlation.abs().max() < 5 / count**0.5


def test_a_stream_repeats() -> None:
    first, second = (torch.randn(8, generator=generator(3, "noise")) for _ in range(2))
    assert torch.equal(first, second)


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("failing", [False, True])
def test_isolated_code_leaves_all_global_generators_as_they_were(failing: bool) -> None:
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()
    try:
        with isolated_rng(0, "adapter"):
            torch.rand(3)
            torch.nn.Linear(4, 4)
            if failing:
                raise Interrupted
    except Interrupted:
        assert failing
    after = torch.get_rng_state(), random.getstate(), np.random.get_state()
    assert torch.equal(before[0], after[0])
    assert before[1] == after[1]
    assert all(np.array_equal(one, other) for one, other in zip(before[2], after[2], strict=True))


def test_isolated_draws_depend_on_seed_and_purpose_alone() -> None:
    def draw(seed: int, purpose: str) -> torch.Tensor:
        torch.rand(1)
        with isolated_rng(seed, purpose):
            return torch.rand(4)

    with torch.random.fork_rng(devices=[]):
        first = draw(0, "adapter")
        assert torch.equal(first, draw(0, "adapter"))
        assert not torch.equal(first, draw(1, "adapter"))
        assert not torch.equal(first, draw(0, "dropout"))
    assert torch.equal(first, torch.rand(4, generator=generator(0, "adapter")))


def test_isolated_scopes_nest() -> None:
    with isolated_rng(0, "adapter"):
        together = torch.rand(4)
    with isolated_rng(0, "adapter"):
        head = torch.rand(2)
        with isolated_rng(0, "dropout"):
            torch.rand(7)
        tail = torch.rand(2)
    assert torch.equal(torch.cat([head, tail]), together)


def test_devices_that_are_not_in_use_are_not_reseeded(monkeypatch: pytest.MonkeyPatch) -> None:
    if torch.cuda.is_initialized():
        pytest.skip("CUDA is in use, and its generators are restored")
    reseeded: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", reseeded.append)
    with isolated_rng(0, "adapter"):
        torch.rand(1)
    assert reseeded == []
