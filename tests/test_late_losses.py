"""Losses are read late, but told by their own step."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from npft.artifacts import StepLoss
from npft.errors import NpftError
from npft.late_losses import EVERY, LateLosses

AHEAD = torch.device("meta")
"""Stands for a device that works ahead of the host."""


class Reads(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts what makes the host wait: values taken out of tensors."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


def loss(value: float) -> Tensor:
    return torch.tensor(value)


def test_values_and_absent_terms_come_back_in_order() -> None:
    losses = LateLosses(AHEAD)
    losses.add(0, loss(1.0), None)
    losses.add(1, None, loss(2.0))
    losses.add(2, loss(3.0), loss(4.0))
    expected = [StepLoss(0, 1.0, None), StepLoss(1, None, 2.0), StepLoss(2, 3.0, 4.0)]
    assert losses.all() == expected
    assert losses.all() == expected


def test_nothing_is_read_between_readings() -> None:
    losses = LateLosses(AHEAD)
    with Reads() as reads:
        for step in range(EVERY - 1):
            losses.add(step, loss(1.0), loss(1.0))
    assert reads.count == 0
    losses.add(EVERY - 1, loss(1.0), loss(1.0))
    assert losses._waiting == []


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_the_first_broken_step_is_named(broken: float) -> None:
    losses = LateLosses(AHEAD)
    for step, value in enumerate([1.0, 2.0, broken, math.nan]):
        losses.add(step, loss(1.0), loss(value))
    with pytest.raises(NpftError, match=f"became {broken} at step 2"):
        losses.all()


def test_a_host_finds_it_at_once() -> None:
    losses = LateLosses(torch.device("cpu"))
    with pytest.raises(NpftError, match="at step 7"):
        losses.add(7, loss(math.nan), None)
