"""Whether packed products are right on this GPU: against float64, outputs poisoned.

    compute-sanitizer --tool racecheck python benchmarks/kernel_checks.py

checks small matrices only. `kernels.py` checks those of LLaMA-2-7B, too.
"""

from __future__ import annotations

import torch
from torch import Tensor

from npft.bench.shapes import FORMATS, Format, random_tensors
from npft.packed import gemv, reference
from npft.packed.gemv import Shape
from npft.packed.tensors import PackedTensors

CUTS = (Shape(8, 1, 3), Shape(8, 2, 2), Shape(16, 1, 1), Shape(16, 2, 1))
ROUNDING = 2**-8
"""Of bf16, relative, of each result."""
REPEATS = 3
STEPS = 4


class Failure(Exception):
    """What is wrong."""


def check(weights: list[PackedTensors], cut: Shape) -> float:
    """The greatest relative error of full-size matrices in a chain of overlapping launches.

    Each reads what the one before wrote, several times: the same bits every time, and every step
    right.

    Raises:
        Failure: a result is wrong, missing, or differs between runs.
    """
    rows, columns = weights[0].rows, weights[0].columns
    square = rows == columns  # a chain: a launch that reads too early reads NaN
    first = torch.randn(STEPS, columns, device="cuda").bfloat16()
    x = torch.empty(STEPS + 1, columns, device="cuda").bfloat16()
    y = x[1:] if square else torch.empty(STEPS, rows, device="cuda").bfloat16()
    used = [weights[step % len(weights)] for step in range(STEPS)]
    known: Tensor | None = None
    for _ in range(REPEATS):
        y.fill_(float("nan"))
        x[: 1 if square else STEPS] = first[: 1 if square else STEPS]
        for step, weight in enumerate(used):
            gemv.multiply(weight, x[step : step + 1], y[step : step + 1], None, cut)
        bits = y.clone().view(torch.int16)
        if known is not None and not torch.equal(bits, known):
            raise Failure(f"cut {cut}: {int((bits != known).sum())} results differ between runs")
        known = bits
    exact = [_exact(weight, x[step : step + 1]) for step, weight in enumerate(used)]
    return _right([_error(y[step : step + 1], right) for step, right in enumerate(exact)], cut)


def check_small(form: Format, cut: Shape) -> float:
    """The greatest relative error of matrices of awkward size, with a bias, 1 to 16 vectors.

    Raises:
        Failure: a result is wrong or missing.
    """
    errors = []
    columns = (640, 384) if form.group_size else (1300, 388)
    rows = (992, 64) if form.sparse else (1000, 70)  # random outliers have whole tiles of rows
    large, small = (rows[0], columns[0]), (rows[1], columns[1])
    for (out, inner), batch in ((large, 1), (small, 2), (small, 3), (small, 16)):
        weight = random_tensors(form, out, inner)
        x = torch.randn(batch, inner, device="cuda").bfloat16()
        bias = torch.randn(out, device="cuda").bfloat16()
        y = torch.full((batch, out), float("nan"), device="cuda").bfloat16()
        gemv.multiply(weight, x, y, bias, cut)
        errors.append(_error(y, _exact(weight, x) + bias.double()))
    return _right(errors, cut)


def _exact(weight: PackedTensors, x: Tensor) -> Tensor:
    return x.double() @ reference.dense(weight).double().T


def _error(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())


def _right(errors: list[float], cut: Shape) -> float:
    if not all(error < ROUNDING for error in errors):  # NaN fails too
        raise Failure(f"cut {cut}: errors {[f'{error:.1e}' for error in errors]}")
    return max(errors)


def main() -> None:
    """See the module."""
    for form in FORMATS:
        print(f"{form.name}: {max(check_small(form, cut) for cut in CUTS):.1e}", flush=True)


if __name__ == "__main__":
    main()
