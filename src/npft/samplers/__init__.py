"""Built-in noise samplers."""

from __future__ import annotations

from npft.contracts import Sampler
from npft.hooks import hookimpl
from npft.samplers.channel_uniform import ChannelUniform
from npft.samplers.residual import Residual
from npft.samplers.step_uniform import StepUniform

__all__ = ["ChannelUniform", "Residual", "StepUniform"]


@hookimpl
def npft_samplers() -> list[type[Sampler]]:
    return [ChannelUniform, Residual, StepUniform]
