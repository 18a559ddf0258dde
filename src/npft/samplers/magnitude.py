"""Noise whose size follows that of the weight: growing with it, or shrinking (Gong et al.)."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from npft.contracts import Sampler
from npft.grid import Grid, step_size
from npft.samplers.distributions import gaussian


def growing(values: Tensor) -> Tensor:
    """Sizes in proportion to ``|x|``, shaped like ``values (groups, n)``."""
    return values.abs()


def shrinking(values: Tensor) -> Tensor:
    r"""Sizes :math:`r / (r + |x|)`, with r the root mean square of each row of ``(groups, n)``.

    Half of what a weight of 0 gets reaches a weight of size r, an eleventh one of size 10 r. (Our
    choice of a function that falls; the paper's is not known to us.)
    """
    typical = values.square().mean(-1, keepdim=True).sqrt()
    typical = typical.masked_fill(typical == 0, 1.0)
    return typical / (typical + values.abs())


class MagnitudeNoise(Sampler):
    r"""Gaussian noise of a size that depends on the weight's own.

    In each channel or group its root mean square is :math:`\Delta / \sqrt{12}`, that of a rounding
    error on the target's grid, so that only the distribution over the weights differs from
    ``step-gaussian`` (Gong et al., arXiv 2403.06408).
    """

    scale: float = Field(1.0, gt=0, description="factor on the size")

    @staticmethod
    def sizes(values: Tensor) -> Tensor:
        """Relative sizes of the noise at ``values (groups, n)``."""
        raise NotImplementedError

    def sample(
        self, weight: Tensor, positions: Tensor, grid: Grid, generator: torch.Generator
    ) -> Tensor:
        grouped = grid.groups(weight.float())
        sizes = self.sizes(grouped)
        typical = sizes.square().mean(-1, keepdim=True).sqrt()
        sizes = sizes / typical.masked_fill(typical == 0, 1.0)
        width = sizes.reshape(weight.shape) * step_size(weight.float(), grid) * self.scale
        unit = gaussian(len(positions), weight, generator)
        return unit * torch.take(width, positions).to(weight.dtype)


class MagnitudeGrowing(MagnitudeNoise):
    """In proportion to ``|w|``: large weights bear large noise."""

    name: ClassVar[str] = "magnitude-growing"

    @staticmethod
    def sizes(values: Tensor) -> Tensor:
        return growing(values)


class MagnitudeShrinking(MagnitudeNoise):
    """Smaller where ``|w|`` is larger, as ``r / (r + |w|)``, r the group's root mean square."""

    name: ClassVar[str] = "magnitude-shrinking"

    @staticmethod
    def sizes(values: Tensor) -> Tensor:
        return shrinking(values)
