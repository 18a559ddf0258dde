"""Algorithm 1: noise over a channel's range, centred."""

from __future__ import annotations

import math
from typing import Literal

import pytest
import torch
from torch import Tensor

from npft.grid import Grid
from npft.samplers import ChannelGaussian, ChannelLaplace, ChannelUniform
from npft.samplers.channel import ChannelNoise

Axis = Literal["output", "input"]
Span = Literal["channel", "outliers"]
axes = pytest.mark.parametrize("axis", ["output", "input"])
shapes = pytest.mark.parametrize("cls", [ChannelUniform, ChannelGaussian, ChannelLaplace])
spans = pytest.mark.parametrize("span", ["channel", "outliers"])


def by_channel(weight: Tensor, positions: Tensor, axis: Axis) -> dict[int, list[int]]:
    """Channel to the places in ``positions`` that lie in it."""
    members: dict[int, list[int]] = {}
    for place, position in enumerate(positions.tolist()):
        row, column = divmod(position, weight.shape[1])
        members.setdefault(row if axis == "output" else column, []).append(place)
    return members


def width(weight: Tensor, channel: int, outliers: Tensor, axis: Axis, span: Span) -> float:
    whole = weight[channel] if axis == "output" else weight[:, channel]
    values = whole if span == "channel" else outliers
    return float(values.max() - values.min())


@pytest.fixture
def weight() -> Tensor:
    random = torch.Generator().manual_seed(1)
    rows = torch.logspace(-1, 1, 10).unsqueeze(1)
    columns = torch.logspace(-1, 1, 14)
    return torch.randn(10, 14, generator=random) * rows * columns


@pytest.fixture
def positions() -> Tensor:
    random = torch.Generator().manual_seed(2)
    return torch.randperm(140, generator=random)[:60].sort().values


@axes
@spans
@pytest.mark.parametrize("scale", [1.0, 0.1])
def test_mean_is_zero_and_range_the_channels_own(
    weight: Tensor, positions: Tensor, axis: Axis, span: Span, scale: float
) -> None:
    sampler = ChannelUniform(axis=axis, span=span, scale=scale)
    noise = sampler.sample(weight, positions, Grid(4), torch.Generator().manual_seed(0))
    outliers = weight.flatten()[positions]
    for channel, places in by_channel(weight, positions, axis).items():
        own, limit = noise[places], width(weight, channel, outliers[places], axis, span) * scale
        assert abs(float(own.sum())) <= 1e-6 * len(places) * limit
        assert float(own.max() - own.min()) <= limit * (1 + 1e-5)


@axes
@spans
@shapes
def test_variance_is_that_of_the_channels_range(
    weight: Tensor, axis: Axis, span: Span, cls: type[ChannelNoise]
) -> None:
    """The variance of n centred draws over a range r is ``r^2 / 12 (1 - 1 / n)`` each."""
    sampler = cls(axis=axis, span=span)
    excess = {ChannelUniform: 0.8, ChannelGaussian: 2.0, ChannelLaplace: 5.0}[cls]  # kurtosis - 1
    source = torch.Generator().manual_seed(0)
    everywhere = torch.arange(weight.numel())
    draws = torch.stack([sampler.sample(weight, everywhere, Grid(4), source) for _ in range(400)])
    for channel, places in by_channel(weight, everywhere, axis).items():
        outliers = weight.flatten()[places]
        limit, n = width(weight, channel, outliers, axis, span), len(places)
        expected = limit**2 / 12 * (1 - 1 / n)
        found = float(draws[:, places].square().mean())
        assert found == pytest.approx(expected, rel=5 * math.sqrt(excess / (400 * n)) + 0.01)
    spread = draws.amax(0) - draws.amin(0)
    assert (spread > 0).all()


@axes
@spans
@shapes
def test_a_single_outlier_of_a_channel_gets_no_noise(
    axis: Axis, span: Span, cls: type[ChannelNoise]
) -> None:
    weight = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    diagonal = torch.arange(4) * 7
    noise = cls(axis=axis, span=span).sample(
        weight, diagonal, Grid(4), torch.Generator().manual_seed(0)
    )
    assert not noise.any()
    pair = torch.tensor([0, 1] if axis == "output" else [0, 6])
    both = cls(axis=axis, span=span).sample(weight, pair, Grid(4), torch.Generator().manual_seed(0))
    assert both[0] != 0
    torch.testing.assert_close(both[0], -both[1], rtol=1e-5, atol=0)


@axes
def test_one_range_for_the_text_another_for_the_released_code(axis: Axis) -> None:
    """A channel with a huge weight that is no outlier: only ``span="channel"`` looks at it."""
    weight = torch.full((2, 2000), 0.1)
    weight[:, ::2] = -0.1
    weight[0, 0] = 100.0
    weight = weight if axis == "output" else weight.T.contiguous()
    positions = torch.arange(weight.numel())
    chosen = positions[weight.flatten() != 100.0]
    largest = {}
    for span in ("channel", "outliers"):
        sampler = ChannelUniform(axis=axis, span=span)  # type: ignore[arg-type]
        noise = sampler.sample(weight, chosen, Grid(4), torch.Generator().manual_seed(0))
        largest[span] = float(noise.abs().max())
    assert 45 < largest["channel"] < 55
    assert 0.095 < largest["outliers"] < 0.105


@axes
@spans
@shapes
def test_noise_is_centred_in_every_channel(
    weight: Tensor, positions: Tensor, axis: Axis, span: Span, cls: type[ChannelNoise]
) -> None:
    noise = cls(axis=axis, span=span).sample(
        weight, positions, Grid(4), torch.Generator().manual_seed(0)
    )
    for places in by_channel(weight, positions, axis).values():
        own = noise[places]
        assert abs(float(own.sum())) <= 1e-6 * len(places) * float(own.abs().max())


@axes
@spans
def test_transposed_weights_get_the_noise_of_a_copy(
    weight: Tensor, positions: Tensor, axis: Axis, span: Span
) -> None:
    sampler, view = ChannelUniform(axis=axis, span=span), weight.T
    assert not view.is_contiguous()
    from_view, from_copy = (
        sampler.sample(w, positions, Grid(4), torch.Generator().manual_seed(0))
        for w in (view, view.clone())
    )
    assert torch.equal(from_view, from_copy)


def test_the_target_grid_does_not_matter(weight: Tensor, positions: Tensor) -> None:
    noises = [
        ChannelUniform().sample(weight, positions, grid, torch.Generator().manual_seed(0))
        for grid in (Grid(2), Grid(8, 7))
    ]
    assert torch.equal(*noises)
