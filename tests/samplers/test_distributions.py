"""Unit draws: their shapes, and the one variance that they share."""

from __future__ import annotations

import math
from statistics import NormalDist

import pytest
import torch
from torch import Tensor

from npft.samplers.distributions import Unit, gaussian, laplace, uniform

COUNT = 20_000


def uniform_cdf(x: Tensor) -> Tensor:
    return (x + 0.5).clamp(0, 1)


def gaussian_cdf(x: Tensor) -> Tensor:
    normal = NormalDist(0, math.sqrt(1 / 12))
    return torch.tensor([normal.cdf(value) for value in x.tolist()], dtype=x.dtype)


def laplace_cdf(x: Tensor) -> Tensor:
    tail = 0.5 * torch.exp(-x.abs() * math.sqrt(24))
    return torch.where(x < 0, tail, 1 - tail)


units = pytest.mark.parametrize(
    ("unit", "cdf", "kurtosis"),
    [(uniform, uniform_cdf, 1.8), (gaussian, gaussian_cdf, 3.0), (laplace, laplace_cdf, 6.0)],
    ids=["uniform", "gaussian", "laplace"],
)


def draw(unit: Unit, count: int = COUNT, dtype: torch.dtype = torch.float32) -> Tensor:
    return unit(count, torch.empty(0, dtype=dtype), torch.Generator().manual_seed(0))


@units
def test_shape(unit: Unit, cdf, kurtosis: float) -> None:
    """Kolmogorov-Smirnov distance from the distribution function."""
    ordered = draw(unit).double().sort().values
    empirical = torch.arange(1, COUNT + 1, dtype=torch.float64) / COUNT
    assert (empirical - cdf(ordered)).abs().max() < 1.95 / math.sqrt(COUNT)  # p = 0.001


@units
def test_moments(unit: Unit, cdf, kurtosis: float) -> None:
    drawn = draw(unit).double()
    assert drawn.mean().abs() < 5 / math.sqrt(12 * COUNT)
    assert float(drawn.var()) == pytest.approx(1 / 12, rel=5 * math.sqrt((kurtosis - 1) / COUNT))
    assert float(drawn.pow(4).mean() / drawn.var() ** 2) == pytest.approx(kurtosis, rel=0.15)


@units
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_draw_is_finite_and_of_the_dtype(unit: Unit, cdf, kurtosis, dtype) -> None:
    drawn = draw(unit, 1_000_000, dtype)
    assert drawn.dtype == dtype
    assert drawn.isfinite().all()
    assert draw(unit, 0, dtype).shape == (0,)
