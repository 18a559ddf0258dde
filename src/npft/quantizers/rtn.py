"""Round to nearest."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from npft.artifacts import PackedWeight, UniformWeight
from npft.contracts import Quantizer
from npft.errors import NpftError
from npft.grid import Grid, encode, minmax, symmetric


class RTN(Quantizer):
    """Round to nearest on the min-max grid, per output channel or group of inputs.

    Codes are computed with the float32 scale, as GPTQ and compressed-tensors do; the stored scale
    is float16, and the dequantized weights are those of the stored scale.
    """

    name: ClassVar[str] = "rtn"

    group_size: int = Field(0, ge=0, description="inputs per group; 0: one group per channel")
    sym: bool = Field(False, description="symmetric grid, its zero in the middle")
    format: Literal["npft", "gptq", "compressed-tensors"] = Field(
        "npft", description="layout of checkpoints: whose software opens them"
    )

    @property
    def variant(self) -> str:
        return "sym" if self.sym else ""

    def quantize_weight(self, weight: Tensor, sensitivity: Tensor | None) -> PackedWeight:
        grid = Grid(self.bits, self.group_size)
        scale, zero = (symmetric if self.sym else minmax)(weight, grid)
        codes = encode(weight, scale, zero, grid)
        return UniformWeight(
            codes.to(torch.uint8), half(scale), zero.to(torch.uint8), self.bits, self.group_size
        )


def half(table: Tensor) -> Tensor:
    """The table as float16.

    Raises:
        NpftError: a value does not fit: the weights are far beyond what a model has.
    """
    stored = table.to(torch.float16)
    if not bool(torch.isfinite(stored).all()):
        raise NpftError(
            f"weights of size {float(table.abs().max()):.3g} do not fit a 16-bit table: check the "
            "model for broken weights"
        )
    return stored
