"""Every variant of variants.py on the CPU, against float64: no GPU needed.

python benchmarks/candidates/emulate.py
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
sys.path[:0] = [
    str(HERE.parent),
    str(HERE.parents[1] / "tests"),
    str(HERE.parents[1] / "tests/packed"),
]

import emulated  # noqa: E402
from packed_samples import codebook_weight, exact_product, relative_error, uniform_weight  # noqa: E402
from variants import PACKAGE, VARIANTS, multiply, stages  # noqa: E402

from npft.packed import nvrtc  # noqa: E402
from npft.packed.gemv import Shape  # noqa: E402
from npft.packed.tensors import from_weight  # noqa: E402

ROUNDING = {torch.bfloat16: 2**-8, torch.float16: 2**-11}
WEIGHTS = {
    "codebook, 4 bits": codebook_weight(4, 90, 1700),
    "codebook, 3 bits": codebook_weight(3, 64, 700),
    "codebook, 2 bits": codebook_weight(2, 33, 513),
    "codebook, 4 bits, sparse": codebook_weight(4, 170, 1500, sparse=0.02),
    "uniform, 4 bits": uniform_weight(4, 40, 300),
    "uniform, 3 bits": uniform_weight(3, 100, 1100),
    "uniform, 8 bits": uniform_weight(8, 40, 300),
    "uniform, 4 bits, groups of 32": uniform_weight(4, 40, 320, 32),
    "uniform, 3 bits, groups of 64": uniform_weight(3, 70, 1600, 64),
    "uniform, 4 bits, groups of 128": uniform_weight(4, 40, 512, 128),
    "uniform, 4 bits, groups of 256, sparse": uniform_weight(4, 100, 768, 256, sparse=0.02),
}


def check(variant, name: str, batch: int, dtype: torch.dtype, shape: Shape, grid: int) -> str:
    """What came of one product."""
    weight = WEIGHTS[name]
    random = torch.Generator().manual_seed(batch)
    rows, columns = weight.shape
    x = torch.randn(batch, columns, generator=random)
    x = (x * (30 if dtype == torch.bfloat16 else 1)).to(dtype)
    bias = torch.randn(rows, generator=random).to(dtype)
    y = torch.full((batch, rows), float("nan"), dtype=dtype)
    packed = from_weight(weight)
    if variant.ring and not stages(packed, batch, shape):
        return "no room"
    multiply(variant, packed, x, y, bias, shape, grid)
    error = relative_error(y, exact_product(weight, x) + bias.double())
    return "ok" if error < ROUNDING[dtype] else f"WRONG: {error:.2e}"


def main() -> None:
    """See the module."""
    nvrtc.kernel = emulated.kernel
    only = sys.argv[1:] or list(VARIANTS)
    for variant in (VARIANTS[key] for key in only):
        if variant == PACKAGE:
            continue
        shapes = [Shape(8, 3, 2), Shape(4, 2, 2)] if variant.ring else [Shape(8, 2), Shape(4, 1)]
        for name, shape in itertools.product(WEIGHTS, shapes):
            if variant.uniform_only and not name.startswith("uniform"):
                continue
            found = [
                check(variant, name, batch, dtype, shape, grid)
                for batch, dtype, grid in (
                    (1, torch.bfloat16, 2),
                    (1, torch.float16, 7),
                    (2, torch.bfloat16, 1),
                    (3, torch.float16, 2),
                    (9, torch.bfloat16, 2),
                )
            ]
            print(f"{variant.name}; {name}; {shape}: {', '.join(found)}", flush=True)


if __name__ == "__main__":
    main()
