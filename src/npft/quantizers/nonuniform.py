"""Uniform rounding of a root of the weights, so that large weights get the larger errors."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from npft.artifacts import CodebookWeight, PackedWeight, PowerWeight, raised
from npft.contracts import Quantizer
from npft.grid import Grid, encode, minmax
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
        return best if self.group_size else _as_codebook(best)


def _rounded(weight: Tensor, grid: Grid, power: float) -> PowerWeight:
    roots = raised(weight, 1 / power)
    scale, zero = minmax(roots, grid)
    codes = encode(roots, scale, zero, grid).to(torch.uint8)
    # The min-max grid of an all-zero group has scale 1, whose powers need not fit 16 bits.
    scale = half(scale * grid.groups(roots).any(2))
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


def _as_codebook(weight: PowerWeight) -> CodebookWeight:
    """The same levels as a table per channel, which rises with the codes."""
    codes = torch.arange(2**weight.bits, device=weight.codes.device)
    roots = (codes - weight.zero.float()) * weight.scale.float()
    return CodebookWeight(weight.codes, half(raised(roots, weight.power.float())), weight.bits)
