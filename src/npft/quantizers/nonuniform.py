"""Uniform rounding of a root of the weights, so that large weights get the larger errors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from npft.artifacts import CodebookWeight, PackedWeight, SparsePart
from npft.contracts import Quantizer
from npft.errors import Unavailable
from npft.grid import Grid, decode, encode, minmax
from npft.quantizers.rtn import half

POWERS = (1.0, 1.5, 2.0, 2.5, 3.0, 4.0)
"""What a search tries; 1 is rounding to nearest."""


class Nonuniform(Quantizer):
    r"""Rounds :math:`f(x) = \mathrm{sign}(x) |x|^{1/p}` to nearest, and goes back by its inverse.

    The grid is the min-max grid of the transformed weights of an output channel or group, so the
    step near x is about :math:`p |x|^{1 - 1/p}` times the one at f(x) (Gong et al., arXiv
    2403.06408, where p = 3). Per channel the levels are a codebook, which packed layers run. With
    ``search``, each channel or group takes the p of least squared error.
    """

    name: ClassVar[str] = "nonuniform"

    power: float = Field(3.0, ge=1, le=8, description="p; 1 is round to nearest")
    search: bool = Field(False, description="choose p per channel or group, by squared error")
    group_size: int = Field(0, ge=0, description="inputs per group; 0: one group per channel")

    @property
    def variant(self) -> str:
        if self.search:
            return "search"
        return "" if self.power == 3 else f"p{self.power:g}"

    def quantize_weight(self, weight: Tensor, sensitivity: Tensor | None) -> PackedWeight:
        grid = Grid(self.bits, self.group_size)
        weight = weight.float()
        best = _rounded(weight, grid, self.power)
        if self.search:
            for power in POWERS:
                best = _better(weight, grid, best, _rounded(weight, grid, power))
        if self.group_size:
            return best
        codes = torch.arange(grid.max_code + 1, dtype=weight.dtype, device=weight.device)
        levels = _inverse((codes - best.zero.float()) * best.scale, best.power)
        return CodebookWeight(best.codes, half(levels), self.bits)


@dataclass(frozen=True)
class PowerWeight(PackedWeight):
    """``w = g((code - zero) * scale)`` per group of inputs, with ``g(y) = sign(y) |y|**power``.

    For simulation: checkpoints and packed layers have no such layout.

    Attributes:
        codes: ``(out, in)`` uint8.
        scale: ``(out, groups)``, in the root's units.
        zero: ``(out, groups)`` uint8.
        power: ``(out, groups)``.
    """

    layout: ClassVar[str] = "power"

    codes: Tensor
    scale: Tensor
    zero: Tensor
    power: Tensor
    bits: int
    group_size: int = 0
    sparse: SparsePart | None = None

    def dequantize_dense(self) -> Tensor:
        grid = Grid(self.bits, self.group_size)
        roots = decode(self.codes.float(), self.scale, self.zero.float(), grid)
        return _inverse(grid.groups(roots), self.power.unsqueeze(2)).reshape(roots.shape)

    @property
    def table_bits(self) -> int:
        return self.scale.numel() * (16 + self.bits)

    def dense_tables(self) -> dict[str, Tensor]:
        raise Unavailable(
            "nonuniform in groups cannot be stored, as no kernel has codebooks per group: use "
            "group_size=0, or npft lens, which simulates it"
        )


def _rounded(weight: Tensor, grid: Grid, power: float) -> PowerWeight:
    roots = weight.sign() * weight.abs() ** (1 / power)
    scale, zero = minmax(roots, grid)
    codes = encode(roots, scale, zero, grid).to(torch.uint8)
    # Half precision like every table; a power of it is less precise than the root itself.
    scale = half(scale).float()
    powers = torch.full_like(scale, power)
    return PowerWeight(codes, scale, zero.to(torch.uint8), powers, grid.bits, grid.group_size)


def _better(weight: Tensor, grid: Grid, one: PowerWeight, other: PowerWeight) -> PowerWeight:
    """Group by group the one of less squared error."""
    errors = [
        grid.groups(w.dequantize() - weight).square().sum(2, keepdim=True) for w in (one, other)
    ]
    wins = errors[1] < errors[0]
    codes = torch.where(wins, grid.groups(other.codes), grid.groups(one.codes))
    picked = wins.squeeze(2)
    return PowerWeight(
        codes.reshape(weight.shape),
        torch.where(picked, other.scale, one.scale),
        torch.where(picked, other.zero, one.zero),
        torch.where(picked, other.power, one.power),
        grid.bits,
        grid.group_size,
    )


def _inverse(roots: Tensor, power: Tensor) -> Tensor:
    return roots.sign() * roots.abs() ** power
