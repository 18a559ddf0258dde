"""Quantized matrices that mean nothing are refused before anything reads them.

What costs nothing, shapes and types, is looked at when a matrix is made; contents, which have to be
read on the matrix's device, when it comes from outside: a checkpoint, a plugin, before a kernel.
Each fault goes on after the matrix's name: "has codes that 3 bits do not hold".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from npft.errors import NpftError

if TYPE_CHECKING:
    from npft.artifacts.weights import PackedWeight, SparsePart

FLOAT = torch.float16
INTEGERS = (torch.int32, torch.int64)


def require(fine: bool, layout: str, fault: str) -> None:
    """Refuse the parts of a matrix.

    Raises:
        NpftError: not ``fine``.
    """
    if not fine:
        raise NpftError(f"a quantized matrix with the layout {layout!r} {fault}")


def check_codes(layout: str, codes: Any, bits: Any) -> None:
    """Refuse codes that are no matrix of bytes, and widths outside 2..8."""
    wide = isinstance(bits, int) and not isinstance(bits, bool) and 2 <= bits <= 8
    require(wide, layout, f"has bits={bits!r}, which is no width in 2..8")
    check_table(layout, "codes", codes, (None, None), torch.uint8)
    require(codes.numel() > 0, layout, "has no codes at all")


def check_table(
    layout: str, name: str, table: Any, shape: tuple[int | None, ...], *dtypes: torch.dtype
) -> None:
    """Refuse a table of another shape, where None stands for any size, or type."""
    fine = isinstance(table, Tensor) and table.dtype in dtypes and table.dim() == len(shape)
    fine = fine and all(size in (None, found) for size, found in zip(shape, table.shape))  # noqa: B905
    if fine:
        return
    found = _described(table) if isinstance(table, Tensor) else type(table).__name__
    wanted = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
    sizes = ", ".join("any" if size is None else str(size) for size in shape)
    require(False, layout, f"has {name} of {found} where it needs {wanted} [{sizes}]")


def groups_of(layout: str, group_size: Any, in_features: int) -> int:
    """How many contiguous groups the inputs make."""
    fine = isinstance(group_size, int) and not isinstance(group_size, bool)
    fine = fine and group_size >= 0 and in_features % (group_size or in_features) == 0
    require(fine, layout, f"has group_size={group_size!r}, no divisor of its {in_features} inputs")
    return in_features // (int(group_size) or in_features)


def check_sparse(layout: str, sparse: SparsePart | None, out_features: int) -> None:
    """Refuse a sparse part that belongs to a matrix of other rows, or does not fit together."""
    if sparse is None:
        return
    check_table(layout, "row offsets", sparse.row_offsets, (out_features + 1,), *INTEGERS)
    check_table(layout, "sparse columns", sparse.columns, (None,), *INTEGERS)
    check_table(layout, "sparse values", sparse.values, (len(sparse.columns),), FLOAT)


def fault(weight: PackedWeight) -> str | None:
    """What is wrong with the contents of a matrix, or None."""
    limit = 2**weight.bits
    if int(weight.codes.max()) >= limit:
        return f"has codes that {weight.bits} bits do not hold"
    tables = weight.dense_tables()
    for name, table in tables.items():
        if table.is_floating_point() and not bool(table.isfinite().all()):
            return f"has a {name} that is not finite"
    if "zero" in tables and int(tables["zero"].max()) >= limit:
        return f"has zero points that {weight.bits} bits do not hold"
    if "g_idx" in tables and not _inside(tables["g_idx"], tables["scale"].shape[1]):
        return f"has inputs in groups outside 0..{tables['scale'].shape[1] - 1}"
    if "power" in tables and not bool(weight.dequantize_dense().isfinite().all()):
        return "has powers under which its values are not finite"
    return None if weight.sparse is None else _sparse_fault(weight.sparse, weight.shape[1])


def _sparse_fault(sparse: SparsePart, in_features: int) -> str | None:
    offsets = sparse.row_offsets
    ascending = bool((offsets.diff() >= 0).all())
    if not (ascending and int(offsets[0]) == 0 and int(offsets[-1]) == sparse.columns.numel()):
        return "has a sparse part whose rows do not add up"
    if not _inside(sparse.columns, in_features):
        return f"has a sparse part with columns outside 0..{in_features - 1}"
    if not bool((sparse.positions(in_features).diff() > 0).all()):
        return "has a sparse part whose columns do not ascend in each row"
    if not bool(sparse.values.isfinite().all()):
        return "has a sparse part with values that are not finite"
    return None


def _inside(indices: Tensor, count: int) -> bool:
    return bool(((indices >= 0) & (indices < count)).all())


def _described(table: Tensor) -> str:
    return f"{str(table.dtype).removeprefix('torch.')} {list(table.shape)}"
