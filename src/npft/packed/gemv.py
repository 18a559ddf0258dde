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
        *((name, ctypes.c_int) for name in ("rows", "columns", "units", "batch", "phase")),
        *((name, ctypes.c_int) for name in ("units_per_group", "aligned")),
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
    """Enough warps to keep memory busy: 16 where there is one block per multiprocessor, else 8."""
    many = weight.blocks >= 2 * _multiprocessors(weight.tiles.device.index or 0)
    return Shape(8, 1, 3) if many else Shape(16, 1, 1)


@cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


@cache
def _multiprocessors(device: int) -> int:
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def vectors(batch: int) -> int:
    """The number of vectors that the kernel for ``batch`` is compiled for."""
    return 1 << (batch - 1).bit_length()


def options(weight: PackedTensors, batch: int, dtype: torch.dtype, shape: Shape) -> tuple[str, ...]:
    """The macros of the kernel for this weight, batch and dtype of x."""
    chosen = [
        *_format_options(weight, dtype),
        f"-DBATCH={vectors(batch)}",
        f"-DWARPS={shape.warps}",
        f"-DDEPTH={shape.depth}",
        f"-DBLOCKS={shape.blocks}",
    ]
    if weight.group_size:
        chosen.append(f"-DGROUP={min(weight.group_size, UNIT)}")
    if weight.row_offsets is not None:
        chosen.append("-DSPARSE")
    return tuple(chosen)


def _format_options(weight: PackedTensors, dtype: torch.dtype) -> list[str]:
    kind = "-DCODEBOOK" if weight.zero is None else "-DUNIFORM"
    return [f"-DBITS={weight.bits}", kind, *(["-DBF16"] if dtype == torch.bfloat16 else [])]


def phase(weight: PackedTensors, batch: int, shape: Shape) -> int:
    """Tiles whose x one warp keeps in shared memory: all, or what fits into 64 KB a block."""
    each = shape.warps * vectors(batch) * UNIT * 2
    fitting = (64 << 10) // each // shape.depth * shape.depth
    return max(shape.depth, min(-(-weight.units // shape.warps), fitting))


def shared_bytes(weight: PackedTensors, batch: int, shape: Shape) -> int:
    """Dynamic shared memory of a block; the kernel cuts it up in the same way."""
    width = vectors(batch)
    table = 128 << (2 * weight.bits) if weight.zero is None else 0
    x = shape.warps * phase(weight, batch, shape) * width * UNIT * 2
    sums = shape.warps * max(width, 2) * ROWS * 4
    return max(table + x, sums) + shape.warps * width * 4 + width * ROWS * 4


def arguments(
    weight: PackedTensors,
    x: Tensor,
    y: Tensor,
    bias: Tensor | None,
    shape: Shape,
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
        phase(weight, len(x), shape),
        max(1, weight.group_size // UNIT),
        int(x.data_ptr() % 8 == 0 and x.stride(0) % 4 == 0 and weight.columns % 4 == 0),
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
    compiled = nvrtc.kernel(
        "gemv.cu", "gemv", options(weight, len(x), x.dtype, shape), x.device.index or 0
    )
    compiled.launch(
        arguments(weight, x, y, bias, shape),
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
