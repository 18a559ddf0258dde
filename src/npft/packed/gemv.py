"""Launching ``cuda/gemv.cu``: which variant, with which shape, on which arguments."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from npft.packed import nvrtc
from npft.packed.layout import ROWS, UNIT

if TYPE_CHECKING:
    from npft.packed.tensors import PackedTensors

MOST_VECTORS = 16
"""Beyond this many vectors, dequantizing and multiplying on the tensor cores is faster."""


class Arguments(ctypes.Structure):
    """``struct Arguments`` of gemv.cu."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("codes", "table", "zero", "x", "y", "bias")),
        *((name, ctypes.c_void_p) for name in ("row_offsets", "entries")),
        *((name, ctypes.c_longlong) for name in ("x_stride", "y_stride")),
        *((name, ctypes.c_int) for name in ("rows", "columns", "units", "batch")),
        ("units_per_group", ctypes.c_int),
    )


@dataclass(frozen=True)
class Shape:
    """How a launch is cut: warps of a block, tiles each warp loads ahead, blocks per multiprocessor
    that the registers must leave room for."""

    warps: int
    depth: int
    blocks: int = 1


def fits(weight: PackedTensors, x: Tensor) -> bool:
    """Whether the kernel can multiply, and is faster than dequantizing: few vectors, on a GPU."""
    return (
        x.is_cuda
        and x.dtype in (torch.float16, torch.bfloat16)
        and 0 < len(x) <= MOST_VECTORS
        and supported(weight)
    )


def supported(weight: PackedTensors) -> bool:
    """Whether the kernel knows the weight's groups, and its GPU has the instructions."""
    group = weight.group_size
    return (group % UNIT == 0 or group in (32, 64)) and _capability(weight.tiles.device) >= (8, 0)


def shape_for(weight: PackedTensors) -> Shape:
    """The fastest cut on an H100 for such a weight and one vector (benchmarks/KERNELS.md).

    16 warps keep memory busy where there is one block per multiprocessor, else 8.
    """
    processors = _multiprocessors(weight.tiles.device.index or 0)
    uniform, sparse = weight.zero is not None, weight.entries is not None
    if weight.blocks < 2 * processors:
        deep = weight.units > 2 * 16 and (uniform or sparse or weight.bits == 3)
        return Shape(16, 2 if deep else 1, 1)
    fits_at_once = weight.blocks <= 3 * processors
    deep = not fits_at_once and (sparse or (uniform and not weight.group_size))
    return Shape(8, 2, 2) if deep else Shape(8, 1, 3)


@cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


@cache
def _multiprocessors(device: int) -> int:
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def vectors(batch: int) -> int:
    """The number of vectors that the kernel for ``batch`` is compiled for."""
    return 1 << (batch - 1).bit_length()


def options(weight: PackedTensors, x: Tensor, shape: Shape) -> tuple[str, ...]:
    """The macros of the kernel for this weight and x."""
    chosen = [
        *_format_options(weight, x.dtype),
        f"-DBATCH={vectors(len(x))}",
        f"-DROUND={tiles_at_once(weight, len(x), shape)}",
        f"-DWARPS={shape.warps}",
        f"-DDEPTH={shape.depth}",
        f"-DBLOCKS={shape.blocks}",
    ]
    if weight.group_size:
        chosen.append(f"-DGROUP={min(weight.group_size, UNIT)}")
    if weight.entries is not None:
        share = _lanes_per_row(shape)
        early = _early_entries(len(weight.entries) / weight.padded_rows, share)
        chosen += ["-DSPARSE", f"-DSHARE={share}", f"-DEARLY={early}"]
    if x.data_ptr() % 8 == 0 and x.stride(0) % 4 == 0 and weight.columns % 4 == 0:
        chosen.append("-DALIGNED")
    return tuple(chosen)


def _format_options(weight: PackedTensors, dtype: torch.dtype) -> list[str]:
    kind = "-DCODEBOOK" if weight.zero is None else "-DUNIFORM"
    return [f"-DBITS={weight.bits}", kind, *(["-DBF16"] if dtype == torch.bfloat16 else [])]


def _lanes_per_row(shape: Shape) -> int:
    """Lanes that have a row of the sparse part together: a power of two, all rows in one block."""
    return 16 if shape.warps >= 16 else 8 if shape.warps >= 8 else 4


def _early_entries(mean: float, share: int) -> int:
    """Sparse entries that each of ``share`` lanes loads early: those of nearly all rows.

    Rows of ``mean`` entries have a Poisson number of them, about three standard deviations at most.
    """
    return max(1, min(8, -(-int(mean + 3 * mean**0.5 + 1) // share)))


def tiles_at_once(weight: PackedTensors, batch: int, shape: Shape) -> int:
    """Tiles whose x a warp loads and keeps at once: all, or as many as registers allow."""
    most = {1: 6, 2: 3, 4: 2}.get(vectors(batch), 1)
    return min(-(-weight.units // shape.warps), most)


def shared_bytes(weight: PackedTensors, batch: int, shape: Shape) -> int:
    """Dynamic shared memory of a block; the kernel cuts it up in the same way."""
    width = vectors(batch)
    aligned = 1 if weight.bits == 4 else 2
    table = aligned * (128 << (2 * weight.bits)) if weight.zero is None else 0
    x = shape.warps * tiles_at_once(weight, batch, shape) * width * UNIT * 2
    sums = shape.warps * (max(width, 2) * ROWS + width) * 4
    sparse = 0 if weight.row_offsets is None else width * ROWS * 4
    return table + x + sums + sparse


def arguments(
    weight: PackedTensors,
    x: Tensor,
    y: Tensor,
    bias: Tensor | None,
) -> Arguments:
    """The kernel's parameter for ``x (batch, columns)`` and ``y (batch, rows)``."""

    def at(tensor: Tensor | None) -> int | None:
        return None if tensor is None else tensor.data_ptr()

    return Arguments(
        at(weight.tiles),
        at(weight.table),
        at(weight.zero),
        at(x),
        at(y),
        at(bias),
        at(weight.row_offsets),
        at(weight.entries),
        x.stride(0),
        y.stride(0),
        y.shape[1],
        weight.columns,
        weight.units,
        len(x),
        max(1, weight.group_size // UNIT),
    )


def multiply(
    weight: PackedTensors,
    x: Tensor,
    y: Tensor,
    bias: Tensor | None = None,
    shape: Shape | None = None,
    *,
    overlap: bool = True,
) -> None:
    """Write ``x W^T + bias`` into ``y`` for up to 16 rows of x, on the current stream.

    Args:
        weight: on a CUDA device.
        x: ``(batch, columns)``, fp16 or bf16, contiguous within rows.
        y: ``(batch, rows)`` of the same dtype; every element is written.
        bias: ``(rows,)`` of the same dtype.
        shape: how to cut the work; chosen by size if not given.
        overlap: let the launch begin while the one before it ends.
    """
    shape = shape or shape_for(weight)
    compiled = nvrtc.kernel("gemv.cu", "gemv", options(weight, x, shape), x.device.index or 0)
    compiled.launch(
        arguments(weight, x, y, bias),
        (weight.blocks,),
        shape.warps * 32,
        shared_bytes(weight, len(x), shape),
        overlap=overlap,
    )


class _Dequantize(ctypes.Structure):
    """``struct Arguments`` of dequantize.cu."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("codes", "table", "zero", "whole")),
        *((name, ctypes.c_int) for name in ("rows", "columns", "units", "group_size")),
    )


def dequantize(weight: PackedTensors, dtype: torch.dtype) -> Tensor:
    """The dense part ``(rows, columns)`` on its GPU, in fp16 or bf16."""
    device = weight.tiles.device
    whole = torch.empty(weight.rows, weight.columns, dtype=dtype, device=device)
    compiled = nvrtc.kernel(
        "dequantize.cu", "dequantize", tuple(_format_options(weight, dtype)), device.index or 0
    )
    zero = None if weight.zero is None else weight.zero.data_ptr()
    pointers = (weight.tiles.data_ptr(), weight.table.data_ptr(), zero, whole.data_ptr())
    sizes = (weight.rows, weight.columns, weight.units, weight.group_size)
    compiled.launch(_Dequantize(*pointers, *sizes), (weight.blocks, -(-weight.units // 8)), 256)
    return whole
