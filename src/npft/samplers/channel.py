"""Noise as wide as the channel's own range (Algorithm 1), in three shapes."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from npft.contracts import Sampler
from npft.grid import Grid
from npft.samplers.distributions import Unit, gaussian, laplace, uniform


class ChannelNoise(Sampler):
    """A unit draw times the channel's range ``max - min``, then centred over its positions.

    A channel is a row (``axis="output"``) or a column (``axis="input"``). Its range is that of all
    its weights (``span="channel"``, the text) or of its outliers only (``span="outliers"``, the
    released code, where a channel with one outlier gets no noise). The appendix of NPFT as
    published (PMLR 280:884-896) compares the shapes and the axes.
    """

    unit: ClassVar[Unit]

    axis: Literal["output", "input"] = Field("output", description="what a channel is")
    span: Literal["channel", "outliers"] = Field("channel", description="whose range is used")
    scale: float = Field(1.0, gt=0, description="factor on the range")

    def sample(
        self, weight: Tensor, positions: Tensor, grid: Grid, generator: torch.Generator
    ) -> Tensor:
        width = weight.shape[1]
        by_output = self.axis == "output"
        channel = positions // width if by_output else positions % width
        channels = weight.shape[0] if by_output else width
        within = 1 if by_output else 0
        if self.span == "channel":
            low, high = torch.aminmax(weight, dim=within)
        else:
            low, high = _range_of_outliers(torch.take(weight, positions), channel, channels)
        unit = self.unit(len(positions), weight, generator)
        noise = unit * (high - low)[channel] * self.scale
        spread = noise.new_zeros(weight.numel()).scatter_(0, positions, noise).view(weight.shape)
        sums = spread.sum(dim=within)
        return noise - (sums / _counts(channel, channels))[channel]


class ChannelUniform(ChannelNoise):
    """Algorithm 1: uniform over a channel's ``min .. max``, then centred over its positions.

    On a min-max grid of b bits this is up to ``2**b - 1`` times wider than eq. 6; ``scale``
    narrows it.
    """

    name: ClassVar[str] = "channel-uniform"
    unit: ClassVar[Unit] = staticmethod(uniform)


class ChannelGaussian(ChannelNoise):
    """Gaussian of the variance of :class:`ChannelUniform` (PMLR 280:884-896, appendix)."""

    name: ClassVar[str] = "channel-gaussian"
    unit: ClassVar[Unit] = staticmethod(gaussian)


class ChannelLaplace(ChannelNoise):
    """Laplace of the variance of :class:`ChannelUniform` (PMLR 280:884-896, appendix)."""

    name: ClassVar[str] = "channel-laplace"
    unit: ClassVar[Unit] = staticmethod(laplace)


def _range_of_outliers(values: Tensor, channel: Tensor, channels: int) -> tuple[Tensor, Tensor]:
    low = values.new_zeros(channels).scatter_reduce(0, channel, values, "amin", include_self=False)
    high = values.new_zeros(channels).scatter_reduce(0, channel, values, "amax", include_self=False)
    return low, high


def _counts(channel: Tensor, channels: int) -> Tensor:
    """How many positions each channel has, or 1. Integers add up alike in any order, on a GPU too,
    where sums of floats over ``channel`` would not: so the noise is spread and summed instead."""
    counts = torch.zeros(channels, dtype=torch.int64, device=channel.device)
    return counts.scatter_add_(0, channel, torch.ones_like(channel)).clamp_(min=1)
