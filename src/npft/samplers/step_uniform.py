"""Noise as wide as one step of the target grid (eq. 6)."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from npft.contracts import Sampler
from npft.grid import Grid, step_size


class StepUniform(Sampler):
    r"""Uniform on :math:`[-\Delta/2, \Delta/2]`, the range of a rounding error (eq. 6).

    :math:`\Delta` is the step of the target's min-max grid in the weight's own channel or group,
    so the standard deviation is :math:`\Delta / \sqrt{12}`.
    """

    name: ClassVar[str] = "step-uniform"

    scale: float = Field(1.0, gt=0, description="factor on the range")

    def sample(
        self, weight: Tensor, positions: Tensor, grid: Grid, generator: torch.Generator
    ) -> Tensor:
        steps = torch.take(step_size(weight, grid), positions)
        unit = torch.rand(
            positions.shape, generator=generator, device=weight.device, dtype=weight.dtype
        )
        return (unit - 0.5) * steps * self.scale
