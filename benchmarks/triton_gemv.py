"""The same products in Triton, as a rival: codes of a row eight to a word, tables through L1.

``measure`` is for kernels.py. ``TRITON_INTERPRET=1 python benchmarks/triton_gemv.py`` checks the
kernels on the CPU.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

CONFIGS = ((4, 1024, 4), (8, 512, 4), (8, 1024, 8), (16, 512, 8))
"""Rows and columns of a block, and warps."""


@triton.jit
def gemv(codes, table, zero, x, y, columns: tl.constexpr, KMEANS: tl.constexpr, GROUP: tl.constexpr,
         rows_all, ROWS: tl.constexpr, COLUMNS: tl.constexpr):  # fmt: skip
    """4-bit codes ``(rows, columns / 8)`` int32; word i has columns 8i to 8i + 7."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    words: tl.constexpr = COLUMNS // 8
    total = tl.zeros((ROWS, words), tl.float32)
    for start in range(0, columns, COLUMNS):
        word = start // 8 + tl.arange(0, words)
        inside = word * 8 < columns
        packed = tl.load(codes + row[:, None] * (columns // 8) + word[None, :],
                         mask=inside[None, :], other=0)  # fmt: skip
        if not KMEANS and GROUP:
            at = (word * 8 // GROUP)[None, :] * rows_all + row[:, None]
            scale = tl.load(table + at, mask=inside[None, :], other=0).to(tl.float32)
            offset = tl.load(zero + at, mask=inside[None, :], other=0).to(tl.float32)
        part = tl.zeros((ROWS, words), tl.float32)
        for i in tl.static_range(8):
            value = tl.load(x + word * 8 + i, mask=inside, other=0).to(tl.float32)
            code = (packed >> (4 * i)) & 15
            if KMEANS:
                weight = tl.load(table + row[:, None] * 16 + code).to(tl.float32)
            elif GROUP:
                weight = code.to(tl.float32) - offset
            else:
                weight = code.to(tl.float32)
            part += weight * value[None, :]
        if not KMEANS and GROUP:
            part *= scale
        elif not KMEANS:
            for i in tl.static_range(8):
                value = tl.load(x + word * 8 + i, mask=inside, other=0).to(tl.float32)
                part -= value[None, :] * tl.load(zero + row).to(tl.float32)[:, None]
        total += part
    result = tl.sum(total, 1)
    if not KMEANS and not GROUP:
        result *= tl.load(table + row).to(tl.float32)
    tl.store(y + row, result)


def launch(weight: tuple[Tensor, Tensor, Tensor], x: Tensor, y: Tensor, group: int,
           kmeans: bool, config: tuple[int, int, int]) -> None:  # fmt: skip
    """Write the product with x ``(1, columns)`` into y ``(1, rows)``."""
    codes, table, zero = weight
    rows, columns, warps = config
    gemv[(y.numel() // rows,)](
        codes, table, zero, x, y, x.numel(), kmeans, group, y.numel(), rows, columns,
        num_warps=warps,
    )  # fmt: skip


def random_weight(
    rows: int, columns: int, group: int, kmeans: bool, device: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, codebook or scale, and zero points."""
    high = 2**31 - 1
    codes = torch.randint(-high, high, (rows, columns // 8), dtype=torch.int32, device=device)
    if kmeans:
        return codes, (torch.randn(rows, 16, device=device) * columns**-0.5).half(), codes
    groups = columns // group if group else 1
    table = ((torch.rand(groups, rows, device=device) + 0.5) * columns**-0.5 / 16).half()
    return codes, table, torch.randint(16, (groups, rows), device=device).half()


def error(weight: tuple[Tensor, Tensor, Tensor], x: Tensor, y: Tensor, group: int,
          kmeans: bool) -> float:  # fmt: skip
    """Relative, against float64."""
    words, table, zero = weight
    codes = torch.stack([(words >> (4 * i)) & 15 for i in range(8)], 2).flatten(1).long()
    if kmeans:
        dense = table.double().gather(1, codes)
    else:
        size = group or codes.shape[1]
        of = torch.arange(codes.shape[1], device=x.device) // size
        dense = (codes.double() - zero.double().T[:, of]) * table.double().T[:, of]
    exact = dense @ x[0].double()
    return float((y[0].double() - exact).norm() / exact.norm())


class Matrix:
    """With the size of what a product must read."""

    def __init__(self, weight: tuple[Tensor, Tensor, Tensor], kmeans: bool) -> None:  # noqa: D107
        self.weight = weight
        self.nbytes = sum(part.nbytes for part in (weight[:2] if kmeans else weight))


def measure(
    form: Any, sizes: dict[str, tuple[int, int]], layers: Any, output: Any, bandwidth: float,
    together: Any,
) -> None:  # fmt: skip
    """Check and time it where Triton has this format: 4 bits without outliers."""
    from npft.bench.timing import graph_replays

    if form.bits != 4 or form.sparse:
        return
    kmeans, group, best = form.kind == "kmeans", form.group_size, {}
    copies = len(next(iter(layers.values())))
    made = {
        name: [random_weight(*size, group, kmeans, "cuda") for _ in range(copies)]
        for name, size in sizes.items()
    }
    for name, (rows, columns) in sizes.items():
        x = torch.randn(1, columns, device="cuda").bfloat16()
        y = torch.full((1, rows), float("nan"), device="cuda").bfloat16()
        found = {}
        for config in CONFIGS:
            launch(made[name][0], x, y, group, kmeans, config)
            wrong = error(made[name][0], x, y, group, kmeans)
            assert wrong < 2**-8, (name, config, wrong)

            def work(name: str = name, config: Any = config, x: Any = x, y: Any = y) -> None:
                for weight in made[name]:
                    launch(weight, x, y, group, kmeans, config)

            found[config] = graph_replays(work, 5).median / copies * 1e3
        best[name] = min(found, key=found.__getitem__)
        print(f"  Triton, {form.name}, {name}: {found[best[name]]:.2f} {best[name]}", flush=True)

    wrapped = {name: [Matrix(w, kmeans) for w in several] for name, several in made.items()}

    def product(name: str, one: Matrix, x: Tensor, y: Tensor) -> None:
        launch(one.weight, x, y, group, kmeans, best[name])

    together(product, "Triton", form, wrapped, output, bandwidth)


if __name__ == "__main__":
    for kmeans, group, columns in ((True, 0, 640), (False, 0, 1280), (False, 128, 640)):
        weight = random_weight(32, columns, group, kmeans, "cpu")
        x, y = torch.randn(1, columns), torch.full((1, 32), float("nan"))
        launch(weight, x, y, group, kmeans, (8, 512, 4))
        print(f"k-means {kmeans}, group {group}: error {error(weight, x, y, group, kmeans):.1e}")
