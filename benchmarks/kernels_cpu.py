"""Packed products on the CPU, one vector: against dequantizing each time, a float product, and
PyTorch's int4 kernel.

    python benchmarks/kernels_cpu.py [--rows 4096 --columns 4096]

Prints the median milliseconds of each over the same matrix, and its ratio to dequantizing.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from npft.artifacts import CodebookWeight, PackedWeight, UniformWeight
from npft.packed import reference
from npft.packed.linear import PackedLinear
from npft.packed.tensors import from_weight


def median_ms(work: Callable[[], object], repeats: int) -> float:
    """After one run that is not measured."""
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times)


def torch_int4(rows: int, columns: int, x: torch.Tensor) -> Callable[[], torch.Tensor]:
    """PyTorch's own, uniform with groups of 128."""
    codes = torch.randint(16, (rows, columns), dtype=torch.int32)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
    scales = torch.rand(columns // 128, rows, 2, dtype=x.dtype)
    return lambda: torch.ops.aten._weight_int4pack_mm_for_cpu(x, packed, 128, scales)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--columns", type=int, default=4096)
    rows, columns = (options := parser.parse_args()).rows, options.columns
    x = torch.randn(1, columns)
    whole = torch.randn(rows, columns)
    print(f"{rows} x {columns}, {torch.get_num_threads()} threads, float32 activations")
    print(f"float32 product: {median_ms(lambda: x @ whole.T, 15):.2f} ms")
    print(f"PyTorch int4, groups of 128: {median_ms(torch_int4(rows, columns, x), 15):.2f} ms")
    codes = torch.randint(16, (rows, columns)).to(torch.uint8)
    scale, zero = torch.rand(rows, 1).half(), torch.full((rows, 1), 8, dtype=torch.uint8)
    grouped = torch.rand(rows, columns // 128).half()
    kinds: dict[str, PackedWeight] = {
        "k-means 4-bit": CodebookWeight(codes, torch.randn(rows, 16).half(), 4),
        "k-means 3-bit": CodebookWeight(codes & 7, torch.randn(rows, 8).half(), 3),
        "uniform 4-bit": UniformWeight(codes, scale, zero, 4),
        "uniform 4-bit, groups of 128": UniformWeight(
            codes, grouped, torch.full_like(grouped, 8).to(torch.uint8), 4, 128
        ),
    }
    for name, weight in kinds.items():
        layer, packed = PackedLinear(from_weight(weight)), from_weight(weight)
        ours = median_ms(lambda: layer(x), 15)  # noqa: B023
        each = median_ms(lambda: x @ weight.dequantize().T, 3)  # noqa: B023
        tiles = median_ms(lambda: reference.multiply(packed, x), 1)  # noqa: B023
        print(
            f"{name}: {ours:.2f} ms; dequantizing each time {each:.2f} ms ({each / ours:.0f} x), "
            f"from the tiles {tiles:.0f} ms"
        )


if __name__ == "__main__":
    main()
