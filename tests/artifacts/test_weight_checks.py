"""Quantized matrices that mean nothing are refused: when made, or before they are read."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from packed_samples import codebook_weight, uniform_weight
from refusals import refusal
from tiny import tiny_model
from torch import Tensor

from npft.artifacts import CodebookWeight, PackedWeight, PowerWeight, SparsePart, UniformWeight
from npft.contracts import Quantizer
from npft.packed.tensors import from_weight

CODEBOOK = codebook_weight(3, 5, 24, sparse=0.2)
UNIFORM = uniform_weight(4, 5, 24, 8)
SHUFFLED = uniform_weight(4, 5, 24, 8, shuffled=True)
POWER = PowerWeight(
    UNIFORM.codes, UNIFORM.scale, UNIFORM.zero, torch.full_like(UNIFORM.scale, 2.0), 4, 8
)


def sparse(**parts: Tensor) -> SparsePart:
    assert CODEBOOK.sparse is not None
    return replace(CODEBOOK.sparse, **parts)


@pytest.mark.parametrize("weight", [CODEBOOK, UNIFORM, SHUFFLED, POWER])
def test_what_is_whole_passes(weight: PackedWeight) -> None:
    weight.check()


@pytest.mark.parametrize(
    ("weight", "changes", "parts"),
    [
        (UNIFORM, {"codes": UNIFORM.codes.long()}, ("codes of int64 [5, 24]", "uint8")),
        (UNIFORM, {"codes": UNIFORM.codes.flatten()}, ("codes of uint8 [120]",)),
        (UNIFORM, {"codes": UNIFORM.codes[:0]}, ("no codes at all",)),
        (UNIFORM, {"codes": [[1]]}, ("codes of list",)),
        (UNIFORM, {"bits": 9}, ("bits=9", "2..8")),
        (UNIFORM, {"bits": "4"}, ("bits='4'",)),
        (UNIFORM, {"bits": True}, ("bits=True",)),
        (UNIFORM, {"group_size": 7}, ("group_size=7", "24 inputs")),
        (UNIFORM, {"group_size": -8}, ("group_size=-8",)),
        (UNIFORM, {"group_size": None}, ("group_size=None",)),
        (UNIFORM, {"group_size": 0}, ("scale of float16 [5, 3]", "float16 [5, 1]")),
        (UNIFORM, {"scale": UNIFORM.scale.float()}, ("scale of float32 [5, 3]",)),
        (UNIFORM, {"scale": UNIFORM.scale[:4]}, ("scale of float16 [4, 3]",)),
        (UNIFORM, {"zero": UNIFORM.zero[:, :1]}, ("zero of uint8 [5, 1]",)),
        (UNIFORM, {"zero": UNIFORM.zero.half()}, ("zero of float16",)),
        (SHUFFLED, {"g_idx": torch.zeros(23, dtype=torch.int32)}, ("g_idx of int32 [23]",)),
        (SHUFFLED, {"g_idx": torch.zeros(24)}, ("g_idx of float32",)),
        (CODEBOOK, {"codebook": CODEBOOK.codebook[:, :7]}, ("codebook of float16 [5, 7]",)),
        (POWER, {"power": POWER.power[:, :2]}, ("power of float16 [5, 2]",)),
        (CODEBOOK, {"sparse": sparse(row_offsets=torch.zeros(5).int())}, ("row offsets",)),
        (CODEBOOK, {"sparse": sparse(columns=torch.zeros(2, 2).int())}, ("sparse columns",)),
        (CODEBOOK, {"sparse": sparse(values=torch.zeros(1).half())}, ("sparse values",)),
    ],
)  # fmt: skip
def test_parts_that_do_not_fit_make_no_matrix(weight: Any, changes: Any, parts: Any) -> None:
    refusal(lambda: replace(weight, **changes), weight.layout, *parts)


def put(tensor: Tensor, value: float, place: int = 0) -> Tensor:
    changed = tensor.clone()
    changed.view(-1)[place] = value
    return changed


OFFSETS, COLUMNS, VALUES = (  # row 0 has many entries
    sparse().row_offsets,
    sparse().columns,
    sparse().values,
)
BROKEN: list[tuple[Any, dict[str, Any], str]] = [
    (CODEBOOK, {"codes": put(CODEBOOK.codes, 8)}, "codes that 3 bits do not hold"),
    (UNIFORM, {"codes": put(UNIFORM.codes, 255)}, "codes that 4 bits do not hold"),
    (UNIFORM, {"zero": put(UNIFORM.zero, 16)}, "zero points that 4 bits do not hold"),
    (UNIFORM, {"scale": put(UNIFORM.scale, math.nan)}, "a scale that is not finite"),
    (UNIFORM, {"scale": put(UNIFORM.scale, math.inf)}, "a scale that is not finite"),
    (CODEBOOK, {"codebook": put(CODEBOOK.codebook, -math.inf)}, "a codebook that is not finite"),
    (POWER, {"power": put(POWER.power, math.nan)}, "a power that is not finite"),
    (POWER, {"power": put(POWER.power, 1e4)}, "powers under which its values are not finite"),
    (SHUFFLED, {"g_idx": put(SHUFFLED.g_idx, 3)}, "groups outside 0..2"),
    (SHUFFLED, {"g_idx": put(SHUFFLED.g_idx, -1)}, "groups outside 0..2"),
    (CODEBOOK, {"sparse": sparse(row_offsets=put(OFFSETS, 1))}, "rows do not add up"),
    (CODEBOOK, {"sparse": sparse(row_offsets=put(OFFSETS, 10**6, -1))}, "rows do not add up"),
    (CODEBOOK, {"sparse": sparse(row_offsets=put(OFFSETS, 0, 2))}, "rows do not add up"),
    (CODEBOOK, {"sparse": sparse(columns=put(COLUMNS, 24))}, "columns outside 0..23"),
    (CODEBOOK, {"sparse": sparse(columns=put(COLUMNS, -1))}, "columns outside 0..23"),
    (CODEBOOK, {"sparse": sparse(columns=put(COLUMNS, 23))}, "columns do not ascend"),
    (CODEBOOK, {"sparse": sparse(values=put(VALUES, math.nan))}, "values that are not finite"),
]


@pytest.mark.parametrize(("weight", "changes", "part"), BROKEN)
def test_contents_out_of_range_are_refused(weight: Any, changes: Any, part: str) -> None:
    refusal(replace(weight, **changes).check, part)


@pytest.mark.parametrize(("weight", "changes", "part"), BROKEN)
def test_no_kernel_gets_them(weight: Any, changes: Any, part: str) -> None:
    refusal(lambda: from_weight(replace(weight, **changes)), part)


def test_a_plugin_that_makes_them_is_told() -> None:
    class Wrong(Quantizer):
        name = "wrong"

        def quantize_weight(self, weight: Tensor, sensitivity: Tensor | None) -> PackedWeight:
            codes = torch.full(weight.shape, 200, dtype=torch.uint8)
            return CodebookWeight(codes, torch.zeros(len(weight), 16).half(), 4)

    refusal(lambda: Wrong().quantize(tiny_model(), []), "codes that 4 bits do not hold")


def test_a_matrix_on_a_grid_is_checked_without_reading_it(monkeypatch) -> None:
    """Making one must not wait for a GPU, so shapes and types alone are looked at."""
    meta: Callable[[Tensor], Tensor] = lambda tensor: tensor.to("meta")  # noqa: E731
    UniformWeight(meta(UNIFORM.codes), meta(UNIFORM.scale), meta(UNIFORM.zero), 4, 8)
