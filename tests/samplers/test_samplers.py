"""What the built-in samplers promise."""

from __future__ import annotations

import pytest
import torch

from npft.contracts import Sampler
from npft.grid import Grid
from npft.samplers import (
    ChannelGaussian,
    ChannelLaplace,
    ChannelUniform,
    Residual,
    StepGaussian,
    StepLaplace,
    StepUniform,
)
from npft.testing import check_sampler

SAMPLERS = [
    StepUniform(),
    StepUniform(scale=0.3),
    ChannelUniform(),
    ChannelUniform(axis="input"),
    ChannelUniform(span="outliers"),
    ChannelUniform(axis="input", span="outliers", scale=0.1),
    StepGaussian(),
    StepLaplace(scale=0.3),
    ChannelGaussian(),
    ChannelGaussian(axis="input", span="outliers"),
    ChannelLaplace(),
    ChannelLaplace(axis="input", scale=0.1),
]


@pytest.mark.parametrize("sampler", [*SAMPLERS, Residual()], ids=repr)
def test_contract(sampler: Sampler) -> None:
    check_sampler(sampler)


@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
def test_every_draw_is_another(sampler: Sampler) -> None:
    random = torch.Generator().manual_seed(0)
    weight, positions = torch.randn(8, 12, generator=random), torch.arange(96)
    first, second = (sampler.sample(weight, positions, Grid(4), random) for _ in range(2))
    assert (first != second).float().mean() > 0.99


@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
def test_noise_is_in_the_weights_units(sampler: Sampler) -> None:
    weight = torch.randn(8, 12, generator=torch.Generator().manual_seed(0))
    positions = torch.arange(0, 96, 2)
    draws = [
        sampler.sample(factor * weight, positions, Grid(4), torch.Generator().manual_seed(1))
        for factor in (1.0, 4.0)
    ]
    torch.testing.assert_close(4 * draws[0], draws[1])


@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
def test_every_position_has_mean_zero(sampler: Sampler) -> None:
    random = torch.Generator().manual_seed(0)
    weight, positions = torch.randn(8, 12, generator=random), torch.arange(0, 96, 3)
    noise = torch.stack([sampler.sample(weight, positions, Grid(4), random) for _ in range(400)])
    error = noise.std(0) / 20
    assert (noise.mean(0).abs() <= 5 * error + 1e-6).all()


@pytest.mark.parametrize("cls", sorted({type(sampler) for sampler in SAMPLERS}, key=str))
@pytest.mark.parametrize("scale", [0.0, -1.0])
def test_a_scale_must_be_positive(cls: type[Sampler], scale: float) -> None:
    with pytest.raises(ValueError, match="scale"):
        cls(scale=scale)  # type: ignore[call-arg]
