"""Whether a variant of variants.py is right on this GPU: against float64, outputs poisoned.

    compute-sanitizer --tool racecheck python benchmarks/checks.py [VARIANT ...]

checks small matrices only. `kernels.py` checks those of LLaMA-2-7B, too.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor
from variants import VARIANTS, Variant, multiply, stages

from npft.bench.shapes import FORMATS, Format, random_tensors
from npft.packed import reference
from npft.packed.gemv import Shape
from npft.packed.tensors import PackedTensors

ROUNDING = 2**-8
"""Of bf16, relative, of each result."""
REPEATS = 3
STEPS = 4


class Failure(Exception):
    """What is wrong."""


def check(variant: Variant, form: Format, weights: list[PackedTensors], cut: Shape) -> float:
    """The greatest relative error.

    Full-size matrices in a chain of overlapping launches, each of which reads what the one before
    wrote, several times: the same bits every time, and every step right. With a variant's first
    cut, small matrices too, with a bias and one or two vectors.

    Raises:
        Failure: a result is wrong, missing, or differs between runs.
    """
    errors = _chain(variant, weights, cut)
    if cut == variant.cuts[0]:
        errors += small(variant, form, cut)
    if not max(errors) < ROUNDING:  # NaN fails too
        raise Failure(f"cut {cut}: errors {[f'{error:.1e}' for error in errors]}")
    return max(errors)


def small_sizes(form: Format) -> list[tuple[int, int, int]]:
    """Rows, columns and vectors of awkward size."""
    columns = (640, 384) if form.group_size else (1300, 388)
    rows = (992, 64) if form.sparse else (1000, 70)  # random outliers have whole tiles of rows
    return [(rows[0], columns[0], 1), (rows[1], columns[1], 2)]


def small(variant: Variant, form: Format, cut: Shape) -> list[float]:
    """Errors of products with small matrices."""
    errors = []
    for rows, columns, batch in small_sizes(form):
        weight = random_tensors(form, rows, columns)
        if variant.ring and not stages(weight, batch, cut):
            continue
        x = torch.randn(batch, columns, device="cuda").bfloat16()
        bias = torch.randn(rows, device="cuda").bfloat16()
        y = torch.full((batch, rows), float("nan"), device="cuda").bfloat16()
        multiply(variant, weight, x, y, bias, cut)
        errors.append(_error(y, _exact(weight, x) + bias.double()))
    return errors


def _chain(variant: Variant, weights: list[PackedTensors], cut: Shape) -> list[float]:
    """Square matrices are a chain: a launch that reads too early reads NaN."""
    rows, columns = weights[0].rows, weights[0].columns
    square = rows == columns
    first = torch.randn(STEPS, columns, device="cuda").bfloat16()
    x = torch.empty(STEPS + 1, columns, device="cuda").bfloat16()
    y = x[1:] if square else torch.empty(STEPS, rows, device="cuda").bfloat16()
    known: Tensor | None = None
    for _ in range(REPEATS):
        y.fill_(float("nan"))
        if square:
            x[0] = first[0]
        else:
            x[:STEPS] = first
        for step in range(STEPS):
            weight = weights[step % len(weights)]
            multiply(variant, weight, x[step : step + 1], y[step : step + 1], None, cut)
        bits = y.clone().view(torch.int16)
        if known is not None and not torch.equal(bits, known):
            raise Failure(f"cut {cut}: {int((bits != known).sum())} results differ between runs")
        known = bits
    return [
        _error(y[s : s + 1], _exact(weights[s % len(weights)], x[s : s + 1])) for s in range(STEPS)
    ]


def _exact(weight: PackedTensors, x: Tensor) -> Tensor:
    return x.double() @ reference.dense(weight).double().T


def _error(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())


def main() -> None:
    """See the module."""
    for variant in (VARIANTS[key] for key in sys.argv[1:] or VARIANTS):
        for form in FORMATS:
            if form.kind != "uniform" and variant.uniform_only:
                continue
            errors = [error for cut in variant.cuts for error in small(variant, form, cut)]
            print(f"{variant.name}, {form.name}: {max(errors):.1e}", flush=True)
            assert max(errors) < ROUNDING


if __name__ == "__main__":
    main()
