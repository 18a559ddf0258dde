"""Noise that follows the size of the weight, or flees it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from npft.grid import Grid
from npft.samplers import MagnitudeGrowing, MagnitudeShrinking
from npft.samplers.magnitude import MagnitudeNoise
from npft.testing import check_sampler

BOTH = pytest.mark.parametrize("cls", [MagnitudeGrowing, MagnitudeShrinking])


def weights() -> Tensor:
    random = torch.Generator().manual_seed(3)
    return torch.randn(4, 8192, generator=random) * torch.tensor([[0.01], [0.1], [1.0], [10.0]])


def draws(cls: type[MagnitudeNoise], grid: Grid, times: int = 64, scale: float = 1.0) -> Tensor:
    weight, random = weights(), torch.Generator().manual_seed(0)
    everywhere = torch.arange(weight.numel())
    drawn = [cls(scale=scale).sample(weight, everywhere, grid, random) for _ in range(times)]
    return torch.stack(drawn).view(times, *weight.shape)


@BOTH
@pytest.mark.parametrize("group_size", [0, 64])
def test_contract(cls: type[MagnitudeNoise], group_size: int) -> None:
    check_sampler(cls())


@BOTH
@pytest.mark.parametrize(("group_size", "scale"), [(0, 1.0), (64, 0.5)])
def test_root_mean_square_is_that_of_rounding(
    cls: type[MagnitudeNoise], group_size: int, scale: float
) -> None:
    """Uniform errors over a step have the standard deviation step / sqrt(12)."""
    groups = weights().view(4, -1, group_size or 8192)
    step = (groups.amax(2) - groups.amin(2)) / 15
    drawn = draws(cls, Grid(4, group_size), scale=scale)
    found = drawn.view(64, *groups.shape).square().mean((0, 3)).sqrt()
    assert torch.allclose(found, scale * step / math.sqrt(12), rtol=0.12)


def test_growing_noise_is_in_proportion() -> None:
    sizes = draws(MagnitudeGrowing, Grid(4), 1024)[:, 2, :200].square().mean(0).sqrt()
    weight = weights()[2, :200].abs()
    factor = (sizes / weight).median()
    assert torch.allclose(sizes, factor * weight, rtol=0.12)


def test_shrinking_noise_halves_at_the_root_mean_square() -> None:
    """Sizes go as 1 / (1 + |w| / r): at 0, r and 10 r as 1, 1/2 and 1/11."""
    weight = weights()[:1].clone()
    rms = weight.square().mean().sqrt()
    weight[0, :3] = torch.stack([rms * 0, rms, rms * 10])
    rms = weight.square().mean().sqrt()
    random, positions = torch.Generator().manual_seed(0), torch.arange(3)
    sampler = MagnitudeShrinking()
    drawn = [sampler.sample(weight, positions, Grid(4), random) for _ in range(4096)]
    sizes = torch.stack(drawn).square().mean(0).sqrt()
    expected = 1 / (1 + weight[0, :3].abs() / rms)
    assert torch.allclose(sizes / sizes[0], expected / expected[0], rtol=0.06)


@BOTH
def test_a_row_of_zeros_gets_none(cls: type[MagnitudeNoise]) -> None:
    weight, random = torch.zeros(2, 8), torch.Generator().manual_seed(0)
    assert not cls().sample(weight, torch.arange(16), Grid(4), random).any()
