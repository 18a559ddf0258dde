"""Eq. 6: noise as wide as one step of the target grid."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from npft.grid import Grid
from npft.samplers import StepGaussian, StepLaplace, StepUniform
from npft.samplers.step import StepNoise


def steps(weight: Tensor, bits: int, group_size: int = 0) -> Tensor:
    """Width of a level for each weight, by eq. 6's definition of the grid."""
    groups = weight.view(weight.shape[0], -1, group_size or weight.shape[1])
    width = groups.amax(2).clamp(min=0) - groups.amin(2).clamp(max=0)
    return (width / (2**bits - 1)).unsqueeze(2).expand_as(groups).reshape(weight.shape)


def draw(
    weight: Tensor, grid: Grid, scale: float = 1.0, cls: type[StepNoise] = StepUniform
) -> Tensor:
    random = torch.Generator().manual_seed(0)
    everywhere = torch.arange(weight.numel())
    return cls(scale=scale).sample(weight, everywhere, grid, random).view(weight.shape)


@pytest.fixture
def weight() -> Tensor:
    """Rows of very different sizes, one of them all positive."""
    random = torch.Generator().manual_seed(3)
    sizes = torch.tensor([0.01, 0.1, 1.0, 10.0]).unsqueeze(1)
    weight = torch.randn(4, 4096, generator=random) * sizes
    weight[2] = weight[2].abs() + 1
    return weight


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("group_size", [0, 1024])
@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_uniform_within_half_a_step(
    weight: Tensor, bits: int, group_size: int, scale: float
) -> None:
    """Kolmogorov-Smirnov distance of noise / step from the uniform distribution on -1/2 .. 1/2."""
    noise = draw(weight, Grid(bits, group_size), scale)
    unit = noise / (steps(weight, bits, group_size) * scale)
    assert unit.abs().max() <= 0.5 * (1 + 1e-5)
    for row in unit.double():
        ordered = (row + 0.5).sort().values
        n = len(ordered)
        empirical = torch.arange(1, n + 1, dtype=torch.float64) / n
        distance = (empirical - ordered).abs().max()
        assert distance < 1.95 / math.sqrt(n)  # p = 0.001


@pytest.mark.parametrize(
    ("cls", "kurtosis"), [(StepUniform, 1.8), (StepGaussian, 3.0), (StepLaplace, 6.0)]
)
def test_moments(weight: Tensor, cls: type[StepNoise], kurtosis: float) -> None:
    """One variance for all: a twelfth of the step squared."""
    unit = draw(weight, Grid(4), cls=cls) / steps(weight, 4)
    n = unit.numel()
    assert unit.mean().abs() < 5 / math.sqrt(12 * n)
    assert unit.var() == pytest.approx(1 / 12, rel=5 * math.sqrt((kurtosis - 1) / n))
    neighbours = (unit[:, 1:] * unit[:, :-1]).mean() * 12
    assert neighbours.abs() < 5 / math.sqrt(n)


def test_each_position_has_the_step_of_its_own_group() -> None:
    weight = torch.tensor([[1.0, -1.0, 0.01, -0.01], [100.0, 0.0, 0.5, 0.5]])
    expected = torch.tensor([2.0, 2.0, 0.02, 0.02, 100.0, 100.0, 0.5, 0.5]) / 15
    source = torch.Generator().manual_seed(0)
    positions = torch.arange(8)
    draws = torch.stack(
        [StepUniform().sample(weight, positions, Grid(4, 2), source) for _ in range(400)]
    )
    widest = draws.abs().max(0).values
    assert (widest <= expected / 2 * (1 + 1e-6)).all()
    assert (widest >= expected / 2 * 0.95).all()


def test_positions_pick_rows_of_a_transposed_weight() -> None:
    weight = torch.tensor([[1.0, 1000.0], [-1.0, -1000.0]]).T  # rows (1, -1), (1000, -1000)
    noise = StepUniform().sample(
        weight, torch.tensor([0, 1]), Grid(2), torch.Generator().manual_seed(0)
    )
    assert noise.abs().max() <= 2 / 3 / 2


def test_a_row_of_zeros_is_not_shaken() -> None:
    """Rounding does it no harm: it lies on every grid."""
    weight = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    weight[1] = 0
    noise = draw(weight, Grid(4))
    assert not noise[1].any()
    assert noise[[0, 2]].all()
