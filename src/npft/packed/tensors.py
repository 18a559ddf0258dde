"""What the kernels read of one weight matrix, and how it is made from a PackedWeight."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from npft.artifacts import CodebookWeight, PackedWeight, SparsePart, UniformWeight
from npft.errors import NpftError
from npft.packed import layout
from npft.packed.layout import HALVES, PAIRS, ROWS

_CONTAINER = {2: 2, 3: 3, 4: 4, 5: 8, 6: 8, 7: 8, 8: 8}
"""Bits that a uniform code takes in the tiles."""


@dataclass(frozen=True)
class PackedTensors:
    """A matrix ``(rows, columns)`` in the kernels' layout, rows padded to whole tiles.

    Attributes:
        tiles: int32, see :mod:`npft.packed.layout`; ``PAIRS`` for a codebook, else ``HALVES``.
        table: the codebook ``(padded rows, 2**bits)`` or, if uniform, the scale
            ``(groups, padded rows)``, float16.
        zero: if uniform, the zero point, ``(groups, padded rows)`` float16.
        group_size: columns per group, 0 for one group.
        row_offsets: of the sparse part, ``(padded rows + 1,)`` int32.
        entries: of the sparse part, int32: column, and the float16 value's bits above it.
        permutation: ``(columns,)`` int64: column j multiplies ``x[permutation[j]]``; the columns
            of the sparse part too.
    """

    rows: int
    columns: int
    bits: int
    tiles: Tensor
    table: Tensor
    zero: Tensor | None = None
    group_size: int = 0
    row_offsets: Tensor | None = None
    entries: Tensor | None = None
    permutation: Tensor | None = None

    @property
    def blocks(self) -> int:
        return int(self.tiles.shape[0])

    @property
    def units(self) -> int:
        return int(self.tiles.shape[1])

    @property
    def padded_rows(self) -> int:
        return self.blocks * ROWS

    @property
    def order(self) -> str:
        """The order of bits in the tiles."""
        return PAIRS if self.zero is None else HALVES

    @property
    def nbytes(self) -> int:
        """Bytes that a product must read of it."""
        return sum(part.nbytes for part in self.tensors().values())

    def tensors(self) -> dict[str, Tensor]:
        """Its tensors by name, without those that it does not have."""
        named = ((field.name, getattr(self, field.name)) for field in fields(self))
        return {name: value for name, value in named if isinstance(value, Tensor)}

    def map(self, function: Callable[[Tensor], Tensor]) -> PackedTensors:
        """The same with ``function`` of each tensor."""
        changed = {name: function(value) for name, value in self.tensors().items()}
        return replace(self, **changed)  # type: ignore[arg-type]


def from_weight(weight: PackedWeight) -> PackedTensors:
    """Lay out a quantized matrix for the kernels.

    Raises:
        NpftError: there is no packed layout for its kind or bits, or its contents are out of
            range, which no kernel looks at.
    """
    weight.check()
    if isinstance(weight, CodebookWeight):
        packed = _codebook(weight)
    elif isinstance(weight, UniformWeight):
        packed = _uniform(weight)
    else:
        raise NpftError(
            f"a matrix with the layout {weight.layout!r} has no packed kernels: use its "
            "dequantized model"
        )
    if weight.sparse is None:
        return packed
    return _with_sparse(packed, weight.sparse)


def _codebook(weight: CodebookWeight) -> PackedTensors:
    if weight.bits > 4:
        raise NpftError(
            f"codebooks of {weight.bits} bits have no packed kernels: choose 2 to 4 bits"
        )
    tiles = layout.pack(weight.codes, weight.bits, PAIRS)
    table = _padded(weight.codebook.half(), 0, len(tiles) * ROWS)
    return PackedTensors(*weight.shape, weight.bits, tiles, table)


def _uniform(weight: UniformWeight) -> PackedTensors:
    codes, permutation, group_size = weight.codes, None, weight.group_size
    if weight.g_idx is not None:
        permutation = weight.g_idx.long().argsort(stable=True)
        sizes = weight.g_idx.long().bincount().unique()
        if len(sizes) > 1:
            raise NpftError(
                "groups of different sizes have no packed kernels: use the dequantized model"
            )
        codes, group_size = codes[:, permutation], int(sizes)
    if group_size >= weight.shape[1]:
        group_size = 0
    tiles = layout.pack(codes, _CONTAINER[weight.bits], HALVES)
    rows = len(tiles) * ROWS
    groups = weight.scale.shape[1]
    if group_size:  # the tiles' padding has groups too
        groups = max(groups, -(-tiles.shape[1] * layout.UNIT // group_size))
    scale = _padded(_padded(weight.scale.half(), 0, rows), 1, groups)
    zero = _padded(_padded(weight.zero.half(), 0, rows), 1, groups)
    return PackedTensors(
        *weight.shape,
        _CONTAINER[weight.bits],
        tiles,
        scale.T.contiguous(),
        zero.T.contiguous(),
        group_size,
        permutation=permutation,
    )


def _with_sparse(packed: PackedTensors, sparse: SparsePart) -> PackedTensors:
    if packed.columns > 1 << 16:
        raise NpftError(
            f"a sparse part over {packed.columns} inputs has no packed kernels: at most 65536"
        )
    columns = sparse.columns.to(torch.int32) & 0xFFFF
    if packed.permutation is not None:
        columns = packed.permutation.argsort()[columns.long()].to(torch.int32)
    offsets = sparse.row_offsets.to(torch.int32)
    end = offsets[-1:].expand(packed.padded_rows + 1 - len(offsets))
    entries = columns | (sparse.values.half().view(torch.int16).to(torch.int32) << 16)
    return replace(packed, row_offsets=torch.cat((offsets, end)), entries=entries.contiguous())


def concatenate(parts: Sequence[PackedTensors]) -> PackedTensors | None:
    """One matrix with the padded rows of all, or None where they are not of one kind."""
    first = parts[0]
    kinds = {
        (part.columns, part.bits, part.zero is None, part.group_size, part.entries is None)
        for part in parts
    }
    if len(kinds) > 1 or any(part.permutation is not None for part in parts):
        return None
    along = 0 if first.zero is None else 1
    whole = replace(
        first,
        rows=sum(part.padded_rows for part in parts),
        tiles=torch.cat([part.tiles for part in parts]),
        table=torch.cat([part.table for part in parts], along),
    )
    if first.zero is not None:
        whole = replace(whole, zero=torch.cat([p.zero for p in parts if p.zero is not None], 1))
    if first.entries is None:
        return whole
    counts = [p.row_offsets.diff() for p in parts if p.row_offsets is not None]
    offsets = torch.nn.functional.pad(torch.cat(counts).cumsum(0), (1, 0)).to(torch.int32)
    entries = torch.cat([part.entries for part in parts if part.entries is not None])
    return replace(whole, row_offsets=offsets, entries=entries)


def _padded(tensor: Tensor, dimension: int, size: int) -> Tensor:
    missing = size - tensor.shape[dimension]
    padding = (0, 0, 0, missing) if dimension == 0 else (0, missing)
    return torch.nn.functional.pad(tensor, padding)
