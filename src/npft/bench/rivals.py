"""Other libraries' products, where they are installed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import Tensor

from npft.packed.decoder import Product, dense_product

GROUP = 128
"""Inputs per group of PyTorch's int4 kernel."""


@dataclass(frozen=True)
class Rival:
    """Makes random products of one kind; ``bytes_per_weight`` is what these must read."""

    name: str
    bytes_per_weight: float
    make: Callable[[int, int], Product]


def cublas(dtype: torch.dtype) -> Rival:
    """The float model's products."""

    def make(rows: int, columns: int) -> Product:
        weight = torch.empty(rows, columns, dtype=dtype, device="cuda")
        return dense_product(weight.normal_(std=columns**-0.5))

    return Rival(f"cuBLAS {str(dtype).removeprefix('torch.')}", 2.0, make)


def torch_int4() -> Rival:
    """PyTorch's own 4-bit product, uniform with groups of 128, which takes bf16."""

    def make(rows: int, columns: int) -> Product:
        bytes_ = torch.randint(256, (rows, columns // 2), dtype=torch.uint8, device="cuda")
        packed = torch.ops.aten._convert_weight_to_int4pack(bytes_, 8)
        size = (columns // GROUP, rows, 2)
        scales = torch.rand(size, device="cuda").bfloat16() * columns**-0.5

        def product(x: Tensor, _: Tensor) -> None:
            # It has no way to write into a given y, and a copy would count against it.
            torch.ops.aten._weight_int4pack_mm(x, packed, GROUP, scales)

        return product

    return Rival(f"PyTorch int4, groups of {GROUP}", 0.5 + 4 / GROUP, make)


OTHERS = {
    "GPTQModel (Marlin, Triton)": "gptqmodel",
    "FLUTE": "flute",
    "any-precision-llm": "any_precision",
}


def not_measured() -> dict[str, str]:
    """Rivals that this run does not measure, and why."""
    return {
        name: "not installed" if find_spec(module) is None else "installed, no adapter yet"
        for name, module in OTHERS.items()
    }
