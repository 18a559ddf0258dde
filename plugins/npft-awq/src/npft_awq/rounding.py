"""Rounding to the asymmetric min-max grid: in float for the searches, as codes for good."""

from __future__ import annotations

import torch
from torch import Tensor

from npft.artifacts import UniformWeight
from npft.errors import NpftError
from npft.grid import Grid, decode, encode, minmax


def rounded(weight: Tensor, grid: Grid) -> Tensor:
    """The nearest float32 values on the grid of ``weight (out, in)``."""
    scale, zero = minmax(weight, grid)
    return decode(encode(weight, scale, zero, grid), scale, zero, grid)


def packed(weight: Tensor, grid: Grid) -> UniformWeight:
    """The same as codes, with the scale in float16.

    Raises:
        NpftError: a scale does not fit into 16 bits.
    """
    scale, zero = minmax(weight, grid)
    codes = encode(weight, scale, zero, grid)
    stored = scale.half()
    if not bool(torch.isfinite(stored).all()):
        raise NpftError(
            f"weights of size {float(weight.abs().max()):.3g} do not fit a 16-bit table: check "
            "the model for broken weights"
        )
    return UniformWeight(
        codes.to(torch.uint8), stored, zero.to(torch.uint8), grid.bits, grid.group_size
    )
