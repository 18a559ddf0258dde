"""PyTorch's own products: the float one of cuBLAS, and the one with 4-bit weights."""

from __future__ import annotations

import torch
from torch import Tensor

from npft.bench.rivals.rival import GROUP, Matrix, Rival


def _cublas(rows: int, columns: int) -> Matrix:
    weight = torch.empty(rows, columns, dtype=torch.bfloat16, device="cuda")
    weight.normal_(std=columns**-0.5)
    return Matrix(lambda x, y: torch.mm(x, weight.T, out=y), lambda: weight)


def _int4(rows: int, columns: int) -> Matrix:
    bytes_ = torch.randint(256, (rows, columns // 2), dtype=torch.uint8, device="cuda")
    packed = torch.ops.aten._convert_weight_to_int4pack(bytes_, 8)
    size = (columns // GROUP, rows, 2)
    scales = torch.rand(size, device="cuda").bfloat16() * columns**-0.5

    def dense() -> Tensor:
        # The even column of a byte is in its high half; a scale and the value of code 8 per group.
        codes = torch.stack((bytes_ >> 4, bytes_ & 15), 2).view(rows, columns // GROUP, GROUP)
        scale, middle = scales.float().transpose(0, 1).split(1, 2)
        return torch.addcmul(middle, codes.float() - 8, scale).reshape(rows, columns)

    # It has no way to write into a given y, and a copy would count against it.
    op = torch.ops.aten._weight_int4pack_mm
    return Matrix(lambda x, _: op(x, packed, GROUP, scales), dense)


CUBLAS = Rival("cuBLAS bfloat16", "torch", 2.0, _cublas)
INT4 = Rival(f"PyTorch int4, groups of {GROUP}", "torch", 0.5 + 4 / GROUP, _int4)
