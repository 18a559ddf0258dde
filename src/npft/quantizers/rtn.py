"""Round to nearest."""

from __future__ import annotations

from collections.abc import Callable
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
        return self._rounded(weight, half)

    def follow(
        self, weight: Tensor, sensitivity: Tensor | None
    ) -> Callable[[Tensor], PackedWeight]:
        """Round afresh each time.

        Whether the scales fit float16 is looked at here alone: to look, the host has to wait for
        the device. A scale that grows beyond it while the matrix moves becomes infinite.
        """
        half(self._scale_and_zero(weight)[0])
        return lambda moved: self._rounded(moved, Tensor.half)

    def _rounded(self, weight: Tensor, stored: Callable[[Tensor], Tensor]) -> PackedWeight:
        scale, zero = self._scale_and_zero(weight)
        codes = encode(weight, scale, zero, self._grid)
        return UniformWeight(
            codes.to(torch.uint8), stored(scale), zero.to(torch.uint8), self.bits, self.group_size
        )

    def _scale_and_zero(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        return (symmetric if self.sym else minmax)(weight, self._grid)

    @property
    def _grid(self) -> Grid:
        return Grid(self.bits, self.group_size)


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
