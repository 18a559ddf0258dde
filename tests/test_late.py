"""What steps say is read late, but told by its own step."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from npft.tuning.late import EVERY, Late, Told

AHEAD = torch.device("meta")
"""Stands for a device that works behind the host."""


class Reads(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts what makes the host wait: values taken out of tensors."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


def number(value: float) -> Tensor:
    return torch.tensor(value)


def test_values_and_absent_terms_come_back_in_order() -> None:
    late = Late(AHEAD)
    late.add(0, number(1.0), None, ("a", "b"), torch.tensor([5.0, 6.0]))
    late.add(1, None, number(2.0), ("b",), torch.tensor([7.0]))
    late.add(2, number(3.0), number(4.0), (), torch.tensor([]))
    assert late.read() == [
        Told(0, 1.0, None, {"a": 5.0, "b": 6.0}),
        Told(1, None, 2.0, {"b": 7.0}),
        Told(2, 3.0, 4.0, {}),
    ]
    assert late.read() == []


def test_nothing_is_read_before_it_is_due() -> None:
    late = Late(AHEAD)
    with Reads() as reads:
        for step in range(EVERY):
            assert not late.due
            late.add(step, number(1.0), number(1.0), ("a",), torch.ones(1))
    assert reads.count == 0
    assert late.due


def test_a_host_reads_each_step() -> None:
    late = Late(torch.device("cpu"))
    late.add(0, number(1.0), None, (), torch.tensor([]))
    assert late.due


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_told(bad: float) -> None:
    assert Told(0, 1.0, None, {"a": 1.0}).finite
    assert not Told(0, bad, None, {"a": 1.0}).finite
    assert not Told(0, bad, None, {"a": 1.0}).finite_losses
    assert not Told(0, 1.0, 1.0, {"a": bad}).finite
    assert Told(0, 1.0, 1.0, {"a": bad}).finite_losses
