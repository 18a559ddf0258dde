"""Noise as wide as one step of the target grid (eq. 6), in three shapes."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from npft.contracts import Sampler
from npft.grid import Grid, step_sizes_at
from npft.samplers.distributions import Unit, gaussian, laplace, uniform


class StepNoise(Sampler):
    r"""A unit draw times the step :math:`\Delta`: its standard deviation is
    :math:`\Delta / \sqrt{12}`.

    :math:`\Delta` is the step of the target's min-max grid in the weight's own channel or group.
    """

    unit: ClassVar[Unit]

    scale: float = Field(1.0, gt=0, description="factor on the range")

    def sample(
        self, weight: Tensor, positions: Tensor, grid: Grid, generator: torch.Generator
    ) -> Tensor:
        steps = step_sizes_at(weight, positions, grid)
        return self.unit(len(positions), weight, generator) * steps * self.scale


class StepUniform(StepNoise):
    r"""Uniform on :math:`[-\Delta/2, \Delta/2]`, the range of a rounding error (eq. 6)."""

    name: ClassVar[str] = "step-uniform"
    unit: ClassVar[Unit] = staticmethod(uniform)


class StepGaussian(StepNoise):
    """Gaussian of the variance of :class:`StepUniform`.

    The appendix of NPFT as published (PMLR 280:884-896) compares the shapes.
    """

    name: ClassVar[str] = "step-gaussian"
    unit: ClassVar[Unit] = staticmethod(gaussian)


class StepLaplace(StepNoise):
    """Laplace of the variance of :class:`StepUniform`.

    The appendix of NPFT as published (PMLR 280:884-896) compares the shapes.
    """

    name: ClassVar[str] = "step-laplace"
    unit: ClassVar[Unit] = staticmethod(laplace)
