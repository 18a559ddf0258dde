"""What the kernels read of one weight matrix, and how it is made from a PackedWeight."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

MAGIC = 1024
"""``MAGIC + code`` is an fp16 number whose low mantissa bits are the code."""


@dataclass(frozen=True)
class PackedTensors:
    """A matrix ``(rows, columns)`` in the kernels' layout, rows padded to whole tiles.

    Attributes:
        tiles: int32, see :mod:`npft.packed.layout`; ``PAIRS`` for a codebook, else ``HALVES``.
        table: the codebook ``(padded rows, 2**bits)`` or, if uniform, the scale
            ``(groups, padded rows)``, float16.
        zero: if uniform, 1024 plus the zero point, ``(groups, padded rows)`` float16.
        group_size: columns per group, 0 for one group.
        row_offsets: of the sparse part, ``(padded rows + 1,)`` int32.
        entries: of the sparse part, int32: column, and the float16 value's bits above it.
        permutation: ``(columns,)`` int64: column j of the tiles multiplies ``x[permutation[j]]``.
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

    @property
    def blocks(self) -> int:
        return int(self.tiles.shape[0])

    @property
    def units(self) -> int:
        return int(self.tiles.shape[1])

    @property
    def nbytes(self) -> int:
        """Bytes that a product must read of it."""
        parts = (self.tiles, self.table, self.zero, self.row_offsets, self.entries)
        return sum(part.nbytes for part in parts if part is not None)
