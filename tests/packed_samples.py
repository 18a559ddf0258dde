"""Random quantized matrices of every layout, for the tests of packed products."""

from __future__ import annotations

import torch

from npft.artifacts import CodebookWeight, PackedWeight, SparsePart, UniformWeight


def codebook_weight(
    bits: int, rows: int, columns: int, *, sparse: float = 0.0, seed: int = 0
) -> CodebookWeight:
    random = torch.Generator().manual_seed(seed)
    codes = torch.randint(2**bits, (rows, columns), generator=random).to(torch.uint8)
    codebook = torch.randn(rows, 2**bits, generator=random).half().sort(1).values
    part = _sparse(rows, columns, sparse, random)
    return CodebookWeight(codes, codebook, bits, sparse=part)


def uniform_weight(
    bits: int,
    rows: int,
    columns: int,
    group: int = 0,
    *,
    sparse: float = 0.0,
    shuffled: bool = False,
    seed: int = 0,
) -> UniformWeight:
    random = torch.Generator().manual_seed(seed)
    groups = columns // group if group else 1
    codes = torch.randint(2**bits, (rows, columns), generator=random).to(torch.uint8)
    scale = (torch.rand(rows, groups, generator=random) + 0.1).half()
    zero = torch.randint(2**bits, (rows, groups), generator=random).to(torch.uint8)
    order = None
    if shuffled:
        order = torch.arange(columns, dtype=torch.int32) // group
        order = order[torch.randperm(columns, generator=random)]
    part = _sparse(rows, columns, sparse, random)
    return UniformWeight(codes, scale, zero, bits, group, order, part)


def _sparse(rows: int, columns: int, share: float, random: torch.Generator) -> SparsePart | None:
    if not share:
        return None
    chosen = torch.rand(rows, columns, generator=random) < share
    chosen[rows // 2] = False  # a row without any
    chosen[0, :: max(1, columns // 50)] = True  # and one with more than a warp at once
    positions = chosen.flatten().nonzero().flatten()
    values = 3 * torch.randn(len(positions), generator=random)
    return SparsePart.at(positions, values, (rows, columns))


def relative_error(found: torch.Tensor, exact: torch.Tensor) -> float:
    """The norm of the difference over the norm of what is exact; NaN never passes a bound."""
    return float((found.double() - exact.double()).norm() / exact.double().norm())


def exact_product(weight: PackedWeight, x: torch.Tensor) -> torch.Tensor:
    """In float64, through the contract's own dequantization."""
    return x.double() @ weight.dequantize().double().T
