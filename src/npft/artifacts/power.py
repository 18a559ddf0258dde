"""Matrices on a uniform grid of a root of the weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from npft.artifacts import weight_checks
from npft.artifacts.weight_checks import FLOAT
from npft.artifacts.weights import PackedWeight, SparsePart
from npft.grid import Grid, decode


@dataclass(frozen=True)
class PowerWeight(PackedWeight):
    r"""``w = sign(y) |y|**power`` with ``y = (code - zero) * scale``, per group of inputs.

    No packed kernel runs this layout; :class:`CodebookWeight` has the same levels per channel.

    Attributes:
        codes: ``(out, in)`` uint8.
        scale: ``(out, groups)`` float16, in the root's units.
        zero: ``(out, groups)`` uint8.
        power: ``(out, groups)`` float16.
        sparse: what is added to that.
    """

    layout: ClassVar[str] = "power"

    codes: Tensor
    scale: Tensor
    zero: Tensor
    power: Tensor
    bits: int
    group_size: int = 0
    sparse: SparsePart | None = None

    def check_tables(self) -> None:
        groups = weight_checks.groups_of(self.layout, self.group_size, self.shape[1])
        shape = (self.shape[0], groups)
        weight_checks.check_table(self.layout, "scale", self.scale, shape, FLOAT)
        weight_checks.check_table(self.layout, "power", self.power, shape, FLOAT)
        weight_checks.check_table(self.layout, "zero", self.zero, shape, torch.uint8)

    def dequantize_dense(self) -> Tensor:
        grid = Grid(self.bits, self.group_size)
        roots = decode(self.codes.float(), self.scale.float(), self.zero.float(), grid)
        powers = self.power.float().unsqueeze(2)
        return raised(grid.groups(roots), powers).reshape(roots.shape)

    @property
    def table_bits(self) -> int:
        return self.scale.numel() * (16 + self.bits + 16)

    def dense_tables(self) -> dict[str, Tensor]:
        return {"scale": self.scale, "zero": self.zero, "power": self.power}


def raised(values: Tensor, power: Tensor | float) -> Tensor:
    """``sign(x) |x|**power``."""
    return values.sign() * values.abs() ** power
