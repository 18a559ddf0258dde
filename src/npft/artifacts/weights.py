"""Quantized matrices: what is stored of them, and what they stand for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Self, TypeVar

import torch
from torch import Tensor

from npft import grid as grids
from npft.artifacts import weight_checks
from npft.artifacts.weight_checks import FLOAT, INTEGERS
from npft.grid import Grid

T = TypeVar("T")


@dataclass(frozen=True)
class SparsePart:
    """Float corrections at few places of a matrix ``(out, in)``, in compressed sparse rows.

    The matrix is the dense part plus this one, so that a product is the sum of two products:
    ``W x = dense(x) + sparse(x)``. (SqueezeLLM, arXiv 2306.07629, section 4.2.)

    Attributes:
        row_offsets: ``(out + 1,)`` int32; row i has the entries ``row_offsets[i]`` up to, not
            including, ``row_offsets[i + 1]``.
        columns: ``(k,)`` int32, ascending in each row.
        values: ``(k,)`` float16.
    """

    row_offsets: Tensor
    columns: Tensor
    values: Tensor

    @classmethod
    def at(cls, positions: Tensor, values: Tensor, shape: tuple[int, int]) -> SparsePart:
        """``values (k,)`` at the sorted flat ``positions (k,)`` of a matrix ``(out, in)``."""
        rows = torch.arange(shape[0] + 1, device=positions.device) * shape[1]
        offsets = torch.searchsorted(positions.contiguous(), rows)
        columns = positions % shape[1]
        return cls(offsets.to(torch.int32), columns.to(torch.int32), values.to(torch.float16))

    def positions(self, in_features: int) -> Tensor:
        """Sorted flat positions ``(k,)`` int64 of the entries."""
        starts = self.row_offsets.long()
        rows = torch.arange(len(starts) - 1, device=starts.device)
        return torch.repeat_interleave(rows, starts.diff()) * in_features + self.columns.long()

    def add_to(self, dense: Tensor) -> Tensor:
        """The float32 ``dense (out, in)`` plus this part; ``dense`` itself is changed."""
        return dense.put_(
            self.positions(dense.shape[1]), self.values.to(dense.dtype), accumulate=True
        )

    @property
    def storage_bits(self) -> int:
        """Bits as stored: values, columns and row offsets (48 per entry, 32 per row)."""
        return sum(8 * part.nbytes for part in (self.values, self.columns, self.row_offsets))

    def tables(self) -> dict[str, Tensor]:
        """What a checkpoint stores of it, by name."""
        return {
            "sparse_row_offsets": self.row_offsets,
            "sparse_columns": self.columns,
            "sparse_values": self.values,
        }


class PackedWeight(ABC):
    """A quantized matrix: what is stored of it, and what it stands for.

    Raises:
        NpftError: its parts have shapes or types that do not fit together.
    """

    layout: ClassVar[str]
    """The word that a checkpoint uses for this layout."""

    codes: Tensor
    bits: int
    sparse: SparsePart | None

    def __post_init__(self) -> None:
        weight_checks.check_codes(self.layout, self.codes, self.bits)
        self.check_tables()
        weight_checks.check_sparse(self.layout, self.sparse, self.shape[0])

    @property
    def shape(self) -> tuple[int, int]:
        return (self.codes.shape[0], self.codes.shape[1])

    def to(self, device: torch.device) -> Self:
        """The same on another device; itself if it is there."""
        return _moved(self, device)

    @abstractmethod
    def check_tables(self) -> None:
        """Refuse tables of shapes and types that do not go with the codes.

        Raises:
            NpftError: there are such.
        """

    def check(self) -> None:
        """Refuse contents that mean nothing, which reading them would find too late.

        Raises:
            NpftError: codes, zero points or indices out of range, or tables that are not finite.
        """
        fault = weight_checks.fault(self)
        weight_checks.require(fault is None, self.layout, fault or "")

    def dequantize(self) -> Tensor:
        """The float32 matrix ``(out, in)`` that is stored: the dense part plus the sparse one."""
        dense = self.dequantize_dense()
        return dense if self.sparse is None else self.sparse.add_to(dense)

    @abstractmethod
    def dequantize_dense(self) -> Tensor:
        """The float32 matrix ``(out, in)`` that the codes alone stand for, newly made."""

    @property
    def storage_bits(self) -> int:
        """Bits of codes, tables and sparse part together, as stored."""
        extra = 0 if self.sparse is None else self.sparse.storage_bits
        return self.codes.numel() * self.bits + self.table_bits + extra

    @property
    @abstractmethod
    def table_bits(self) -> int:
        """Bits of the tables that go with the codes."""

    @abstractmethod
    def dense_tables(self) -> dict[str, Tensor]:
        """The tables that go with the codes, by name."""

    def tables(self) -> dict[str, Tensor]:
        """What is stored beside the codes, by name."""
        return self.dense_tables() | ({} if self.sparse is None else self.sparse.tables())


@dataclass(frozen=True)
class UniformWeight(PackedWeight):
    """Codes on a uniform grid: ``w = (code - zero) * scale`` per group of inputs.

    Attributes:
        codes: ``(out, in)`` uint8.
        scale: ``(out, groups)`` float16.
        zero: ``(out, groups)`` uint8, an integer zero point.
        g_idx: ``(in,)`` int32, the group of each input where groups are not contiguous (GPTQ's
            act-order).
        sparse: what is added to that.
    """

    layout: ClassVar[str] = "uniform"

    codes: Tensor
    scale: Tensor
    zero: Tensor
    bits: int
    group_size: int = 0
    g_idx: Tensor | None = None
    sparse: SparsePart | None = None

    def check_tables(self) -> None:
        groups: int | None = None
        if self.g_idx is not None:
            inputs = (self.shape[1],)
            weight_checks.check_table(self.layout, "g_idx", self.g_idx, inputs, *INTEGERS)
        else:
            groups = weight_checks.groups_of(self.layout, self.group_size, self.shape[1])
        of_groups = (self.shape[0], groups)
        weight_checks.check_table(self.layout, "scale", self.scale, of_groups, FLOAT)
        same = (self.shape[0], self.scale.shape[1])
        weight_checks.check_table(self.layout, "zero", self.zero, same, torch.uint8)

    def dequantize_dense(self) -> Tensor:
        scale, zero = self.scale.float(), self.zero.float()
        if self.g_idx is not None:
            of_input = self.g_idx.long()
            return (self.codes.float() - zero[:, of_input]) * scale[:, of_input]
        return grids.decode(self.codes.float(), scale, zero, Grid(self.bits, self.group_size))

    @property
    def table_bits(self) -> int:
        order = 0 if self.g_idx is None else 32 * self.g_idx.numel()
        return self.scale.numel() * (16 + self.bits) + order

    def dense_tables(self) -> dict[str, Tensor]:
        order = {} if self.g_idx is None else {"g_idx": self.g_idx}
        return {"scale": self.scale, "zero": self.zero, **order}


@dataclass(frozen=True)
class CodebookWeight(PackedWeight):
    """Codes into a table of values per output channel: ``w[i, j] = codebook[i, code[i, j]]``.

    Attributes:
        codes: ``(out, in)`` uint8.
        codebook: ``(out, 2**bits)`` float16, ascending.
        sparse: what is added to that.
    """

    layout: ClassVar[str] = "codebook"

    codes: Tensor
    codebook: Tensor
    bits: int
    sparse: SparsePart | None = None

    def check_tables(self) -> None:
        values = (self.shape[0], 2**self.bits)
        weight_checks.check_table(self.layout, "codebook", self.codebook, values, FLOAT)

    def dequantize_dense(self) -> Tensor:
        return torch.gather(self.codebook.float(), 1, self.codes.long())

    @property
    def table_bits(self) -> int:
        return self.codebook.numel() * 16

    def dense_tables(self) -> dict[str, Tensor]:
        return {"codebook": self.codebook}


def _moved(part: T, device: torch.device) -> T:
    """A dataclass of tensors, and of such dataclasses, on another device; itself if it is there."""
    moved: dict[str, Any] = {}
    for each in fields(part):  # type: ignore[arg-type]
        value = getattr(part, each.name)
        if isinstance(value, Tensor) and value.device != device:
            moved[each.name] = value.to(device)
        elif isinstance(value, SparsePart):
            moved[each.name] = _moved(value, device)
    return replace(part, **moved) if moved else part  # type: ignore[type-var]
