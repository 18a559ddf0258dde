"""GPTQModel's products with weights in the GPTQ format, 4 bits, symmetric.

Marlin is compiled at its first use, which takes nvcc and minutes. Triton's kernel dequantizes the
whole weight, which cuBLAS then multiplies.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from npft.bench.rivals.rival import GROUP, Matrix, Rival

BITS = 4
PER_WORD = 32 // BITS
MIDDLE = 2 ** (BITS - 1)
"""The code of zero."""

_ARGUMENTS = {
    "bits": BITS,
    "group_size": GROUP,
    "desc_act": False,
    "sym": True,
    "bias": False,
    "pack_dtype": torch.int32,
}


def triton_layer(rows: int, columns: int, device: str) -> Any:
    """GPTQModel's layer for Triton, all codes 0."""
    from gptqmodel.nn_modules.qlinear.tritonv2 import TritonV2Linear

    with torch.device(device):
        return TritonV2Linear(in_features=columns, out_features=rows, **_ARGUMENTS)


def marlin_layer(rows: int, columns: int, device: str) -> Any:
    """GPTQModel's layer for Marlin, its buffers empty."""
    from gptqmodel.nn_modules.qlinear.marlin import MarlinLinear

    with torch.device(device):
        return MarlinLinear(
            in_features=columns, out_features=rows, dtype=torch.bfloat16, **_ARGUMENTS
        )


def filled(layer: Any) -> Matrix:
    """The layer's product, with random codes and scales."""
    high = 2**31
    layer.qweight.random_(-high, high - 1)
    layer.scales.uniform_(0.5, 1.5).mul_(layer.in_features**-0.5 / MIDDLE)
    word = sum(MIDDLE << BITS * place for place in range(PER_WORD))
    layer.qzeros.fill_(word - 2 * high)  # as a signed number
    weight, scales = layer.qweight.clone(), layer.scales.clone()
    layer.eval().post_init()
    return Matrix(lambda x, _: layer(x), lambda: dense(weight, scales))


def dense(weight: Tensor, scales: Tensor) -> Tensor:
    """The matrix ``(rows, columns)`` of words ``(columns / 8, rows)``, lowest bits first, and
    scales ``(columns / 128, rows)``."""
    shifts = torch.arange(0, 32, BITS, device=weight.device, dtype=torch.int32)
    codes = (weight[:, None] >> shifts[None, :, None]) & (2**BITS - 1)
    centred = codes.view(-1, GROUP, weight.shape[1]) - MIDDLE
    return torch.mul(centred, scales.float()[:, None]).flatten(0, 1).T


def _marlin(rows: int, columns: int) -> Matrix:
    return filled(marlin_layer(rows, columns, "cuda"))


def _triton(rows: int, columns: int) -> Matrix:
    return filled(triton_layer(rows, columns, "cuda"))


MARLIN = Rival(f"GPTQModel Marlin, groups of {GROUP}", "gptqmodel", 0.5 + 2 / GROUP, _marlin)
# Marlin has no zeros. The index of groups is not counted: groups in order need none.
TRITON = Rival(
    f"GPTQModel Triton, groups of {GROUP}", "gptqmodel", 0.5 + (2 + BITS / 8) / GROUP, _triton
)
