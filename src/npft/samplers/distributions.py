"""Unit draws of equal variance 1/12 and mean 0, so that only their shape differs."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor


class Unit(Protocol):
    """Independent draws of mean 0 and variance 1/12."""

    def __call__(self, count: int, like: Tensor, generator: torch.Generator) -> Tensor:
        """``(count,)`` of the dtype and on the device of ``like``."""
        ...


def uniform(count: int, like: Tensor, generator: torch.Generator) -> Tensor:
    """Uniform on [-1/2, 1/2]: a rounding error on a grid of step 1."""
    return torch.rand(count, generator=generator, device=like.device, dtype=like.dtype) - 0.5


def gaussian(count: int, like: Tensor, generator: torch.Generator) -> Tensor:
    """Normal with standard deviation ``1 / sqrt(12)``."""
    normal = torch.randn(count, generator=generator, device=like.device, dtype=like.dtype)
    return normal / math.sqrt(12)


def laplace(count: int, like: Tensor, generator: torch.Generator) -> Tensor:
    """Laplace with scale ``b = 1 / sqrt(24)``, whose variance is ``2 b**2``.

    It is the difference of two exponentials, which unlike the inverse of the distribution
    function is finite for every draw.
    """
    both = like.new_empty(2, count).exponential_(generator=generator)
    return (both[0] - both[1]) / math.sqrt(24)
