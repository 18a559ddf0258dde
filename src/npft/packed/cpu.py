"""Packed products on the CPU by numba: codes are looked up as they are read, row by row.

The tiles of the GPU kernels would be read out of order here, so a layer on the CPU keeps a second
form: one byte per two codes of 4 bits or fewer, row by row.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from npft.packed import layout
from npft.packed.tensors import PackedTensors

MOST_VECTORS = 4
"""Beyond this many vectors, dequantizing once for all of them is faster."""


@dataclass(frozen=True)
class RowTensors:
    """A matrix for the CPU.

    Attributes:
        codes: ``(rows, ceil(columns / 2))`` uint8: code 2j in the lower four bits.
        tables: ``(rows, groups, 16)`` float32: the value of each code, per row and group.
        group_size: an even number of columns.
        offsets, columns, values: the sparse part, in compressed rows.
    """

    codes: Tensor
    tables: Tensor
    group_size: int
    offsets: Tensor
    columns: Tensor
    values: Tensor


def available(weight: PackedTensors) -> bool:
    """Whether numba is installed and the matrix has a form for the CPU."""
    even = weight.group_size % 2 == 0
    return weight.bits <= 4 and even and find_spec("numba") is not None


def rows_of(weight: PackedTensors) -> RowTensors:
    """The form for the CPU of a matrix that is :func:`available`."""
    codes = layout.unpack(weight.tiles, weight.order, weight.rows, weight.columns)
    codes = torch.nn.functional.pad(codes, (0, weight.columns % 2))
    if weight.zero is None:
        tables = weight.table[: weight.rows].float().unsqueeze(1)
    else:
        levels = torch.arange(2**weight.bits)
        zero = weight.zero[:, : weight.rows].T.float()
        scale = weight.table[:, : weight.rows].T.float()
        tables = (levels - zero.unsqueeze(2)) * scale.unsqueeze(2)
    padded = torch.nn.functional.pad(tables, (0, 16 - tables.shape[2]))
    if weight.row_offsets is None or weight.entries is None:
        offsets = torch.zeros(weight.rows + 1, dtype=torch.int32)
        entries = torch.zeros(0, dtype=torch.int32)
    else:
        offsets, entries = weight.row_offsets[: weight.rows + 1], weight.entries
    return RowTensors(
        (codes[:, ::2] | (codes[:, 1::2] << 4)).contiguous(),
        padded.contiguous(),
        weight.group_size or codes.shape[1],
        offsets.contiguous(),
        entries & 0xFFFF,
        (entries >> 16).to(torch.int16).view(torch.float16).float(),
    )


def dense(weight: RowTensors, columns: int) -> Tensor:
    """The float32 matrix ``(rows, columns)``."""
    whole = torch.empty(len(weight.codes), 2 * weight.codes.shape[1])
    _dequantizer()(
        *(part.numpy() for part in (weight.codes, weight.tables)),
        weight.group_size // 2,
        whole.numpy(),
    )
    if len(weight.values):
        counts = weight.offsets.diff().long()
        rows = torch.repeat_interleave(torch.arange(len(counts)), counts)
        places = (rows, weight.columns.long())
        whole.index_put_(places, weight.values, accumulate=True)
    return whole[:, :columns]


def multiply(weight: RowTensors, x: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x (n, columns)`` times the matrix transposed, ``(n, rows)``, summed in float32."""
    columns = 2 * weight.codes.shape[1]
    padded = torch.nn.functional.pad(x.float(), (0, columns - x.shape[1]))
    even, odd = padded[:, ::2].contiguous(), padded[:, 1::2].contiguous()
    y = torch.empty(len(x), len(weight.codes))
    parts = (weight.codes, weight.tables, weight.offsets, weight.columns, weight.values)
    _kernel()(
        *(part.numpy() for part in parts),
        weight.group_size // 2,
        even.numpy(),
        odd.numpy(),
        y.numpy(),
    )
    if bias is not None:
        y += bias.float()
    return y.to(x.dtype)


@cache
def _kernel() -> Any:
    import numba

    @numba.njit(parallel=True, fastmath={"reassoc", "contract"}, cache=True, nogil=True)  # type: ignore[misc,unused-ignore]
    def gemv(codes, tables, offsets, columns, values, half, even, odd, y):  # type: ignore[no-untyped-def] # pragma: no cover
        for row in numba.prange(codes.shape[0]):
            for n in range(y.shape[0]):
                whole = numba.float32(0)
                for first in range(0, codes.shape[1], half):
                    table = tables[row, first // half]
                    last = min(first + half, codes.shape[1])
                    mine = codes[row, first:last]
                    left, right = even[n, first:last], odd[n, first:last]
                    for j in range(mine.shape[0]):
                        byte = mine[j]
                        whole += table[byte & 15] * left[j] + table[byte >> 4] * right[j]
                for i in range(offsets[row], offsets[row + 1]):
                    column = columns[i]
                    x = odd[n, column >> 1] if column & 1 else even[n, column >> 1]
                    whole += values[i] * x
                y[n, row] = whole

    return gemv


@cache
def _dequantizer() -> Any:
    import numba

    @numba.njit(parallel=True, cache=True, nogil=True)  # type: ignore[misc,unused-ignore]
    def dequantize(codes, tables, half, whole):  # type: ignore[no-untyped-def] # pragma: no cover
        for row in numba.prange(codes.shape[0]):
            for j in range(codes.shape[1]):
                byte = codes[row, j]
                whole[row, 2 * j] = tables[row, j // half, byte & 15]
                whole[row, 2 * j + 1] = tables[row, j // half, byte >> 4]

    return dequantize
