"""Quantized matrices as a plugin may make them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any

import torch
from fuzzing.mutations import NUMBERS, damaged_tensors
from fuzzing.target import Prepared
from packed_samples import codebook_weight, uniform_weight
from torch import Tensor

from npft.artifacts import PackedWeight, PowerWeight, SparsePart, UniformWeight
from npft.errors import NpftError
from npft.packed.linear import PackedLinear
from npft.packed.tensors import from_weight

Parts = tuple[type[PackedWeight], dict[str, Tensor], dict[str, Any]]
"""A class, tensors by name as in a checkpoint, and the other fields."""

_SPARSE = ("sparse_row_offsets", "sparse_columns", "sparse_values")


def weights(_: Path) -> Prepared:
    """Matrices of every layout, made of tensors that do not fit together."""
    valid = _valid()
    return Prepared(lambda random: _damaged(random, *random.choice(valid)), use, valid)


def _valid() -> list[Parts]:
    found: list[Parts] = []
    for weight in (
        codebook_weight(3, 40, 70, sparse=0.1),
        uniform_weight(4, 40, 64, 16, sparse=0.1),
        uniform_weight(4, 40, 64, 16, shuffled=True),
        uniform_weight(8, 40, 64),
    ):
        others = {"bits": weight.bits}
        if isinstance(weight, UniformWeight):
            others["group_size"] = weight.group_size
        found.append((type(weight), {"codes": weight.codes, **weight.tables()}, others))
    _, tensors, others = found[1]
    power = {"power": torch.full_like(tensors["scale"], 2.0)}
    found.append((PowerWeight, {**tensors, **power}, others))
    return found


def _damaged(
    random: Random, cls: type[PackedWeight], tensors: dict[str, Tensor], others: dict[str, Any]
) -> Parts:
    if random.randrange(4):
        return cls, damaged_tensors(random, tensors), others
    value = random.choice([random.choice(NUMBERS), random.randint(-2, 70), None, "4"])
    return cls, dict(tensors), {**others, random.choice(sorted(others)): value}


def use(parts: Parts) -> None:
    """Build the matrix, and do everything with it that npft does."""
    cls, tensors, others = parts
    weight = build(cls, tensors, others)
    weight.check()
    assert weight.dequantize().isfinite().all()
    assert weight.storage_bits > 0
    try:
        layer = PackedLinear(from_weight(weight))
    except NpftError:
        return
    for count in (1, 8):
        assert layer(torch.ones(count, weight.shape[1])).isfinite().all()


def build(
    cls: type[PackedWeight], tensors: Mapping[str, Tensor], others: Mapping[str, Any]
) -> PackedWeight:
    """The matrix of tensors by name; what has no place in it is left out."""
    named = dict(tensors)
    sparse = [named.pop(name, None) for name in _SPARSE]
    part = None if None in sparse else SparsePart(*sparse)  # type: ignore[arg-type]
    fields = cls.__dataclass_fields__  # type: ignore[attr-defined]
    mine = {name: value for name, value in named.items() if name in fields}
    missing = {"codes", "codebook", "scale", "zero", "power"} & fields.keys() - mine.keys()
    mine |= {name: torch.zeros(0) for name in missing}
    return cls(**mine, **others, sparse=part)
