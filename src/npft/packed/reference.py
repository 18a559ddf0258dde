"""Packed products in plain torch: what the kernels are tested against."""

from __future__ import annotations

import torch
from torch import Tensor

from npft.packed import layout
from npft.packed.tensors import PackedTensors


def dense(weight: PackedTensors) -> Tensor:
    """The float32 matrix ``(rows, columns)``, in the tiles' order of columns."""
    codes = layout.unpack(weight.tiles, weight.order, weight.rows, weight.columns).long()
    if weight.zero is None:
        whole = torch.gather(weight.table[: weight.rows].float(), 1, codes)
    else:
        size = weight.group_size or weight.columns
        group = torch.arange(weight.columns, device=codes.device) // size
        zero = weight.zero[:, : weight.rows].T.float()[:, group]
        whole = (codes - zero) * weight.table[:, : weight.rows].T.float()[:, group]
    add_sparse(weight, whole)
    return whole


def add_sparse(weight: PackedTensors, whole: Tensor) -> None:
    """Add the sparse part, if there is one, to ``whole (rows, columns)`` in place."""
    if weight.row_offsets is None or weight.entries is None:
        return
    counts = weight.row_offsets.diff()[: weight.rows].long()
    every = torch.arange(weight.rows, device=counts.device)
    rows = torch.repeat_interleave(every, counts, output_size=len(weight.entries))
    values = (weight.entries >> 16).to(torch.int16).view(torch.float16)
    columns = (weight.entries & 0xFFFF).long()
    whole.index_put_((rows, columns), values.to(whole.dtype), accumulate=True)


def multiply(weight: PackedTensors, x: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x (n, columns)``, in the tiles' order of columns, times the matrix transposed."""
    return torch.nn.functional.linear(x, dense(weight).to(x.dtype), bias)
