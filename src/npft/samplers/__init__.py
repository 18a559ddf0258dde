"""Built-in noise samplers."""

from __future__ import annotations

from npft.contracts import Sampler
from npft.hooks import hookimpl
from npft.samplers.channel import ChannelGaussian, ChannelLaplace, ChannelUniform
from npft.samplers.magnitude import MagnitudeGrowing, MagnitudeShrinking
from npft.samplers.residual import Residual
from npft.samplers.step import StepGaussian, StepLaplace, StepUniform

__all__ = [
    "ChannelGaussian",
    "ChannelLaplace",
    "ChannelUniform",
    "MagnitudeGrowing",
    "MagnitudeShrinking",
    "Residual",
    "StepGaussian",
    "StepLaplace",
    "StepUniform",
]


@hookimpl
def npft_samplers() -> list[type[Sampler]]:
    return [
        ChannelGaussian,
        ChannelLaplace,
        ChannelUniform,
        MagnitudeGrowing,
        MagnitudeShrinking,
        Residual,
        StepGaussian,
        StepLaplace,
        StepUniform,
    ]
