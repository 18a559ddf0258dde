"""The uniform min-max grid: what RTN rounds to and what the noise samplers imitate.

A weight matrix ``(out, in)`` is cut into groups of ``group_size`` along its input dimension; each
group has a scale and an integer zero point of its own. ``group_size = 0`` is one group per output
channel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from npft.errors import NpftError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Grid:
    """A target of quantization: ``2**bits`` levels per group of ``group_size`` inputs."""

    bits: int
    group_size: int = 0

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise NpftError(f"bits={self.bits} is outside 2..8: choose a width in that range")
        if self.group_size < 0:
            raise NpftError(
                f"group_size={self.group_size} is negative: give a positive size, or 0 for one "
                "group per output channel"
            )

    @property
    def max_code(self) -> int:
        """The largest code, ``2**bits - 1``."""
        return int(2**self.bits - 1)

    def groups(self, weight: Tensor) -> Tensor:
        """View ``(out, in)`` as ``(out, groups, group)``.

        Raises:
            NpftError: the group size does not divide the input dimension.
        """
        out_features, in_features = weight.shape
        size = self.group_size or in_features
        if in_features % size:
            raise NpftError(
                f"group_size={size} does not divide the {in_features} inputs of a layer: choose a "
                "divisor, or 0 for one group per output channel"
            )
        return weight.reshape(out_features, in_features // size, size)


def minmax(weight: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Scale and zero point of the asymmetric min-max grid, each ``(out, groups)``.

    ``scale = (max(w, 0) - min(w, 0)) / (2**bits - 1)`` and ``zero = round(-min(w, 0) / scale)``,
    so that zero is always on the grid (as in GPTQ and compressed-tensors). An all-zero group gets
    scale 1, which represents it exactly.
    """
    low, high = _extremes(weight, grid)
    scale = (high - low) / grid.max_code
    scale = scale.masked_fill(scale == 0, 1.0)
    zero = (-low / scale).round().clamp(0, grid.max_code)
    return scale, zero


def symmetric(weight: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Scale and zero point of the symmetric grid, each ``(out, groups)``.

    ``scale = 2 max|w| / (2**bits - 1)`` and ``zero = 2**(bits - 1)`` (as in GPTQ and
    compressed-tensors). An all-zero group gets scale 1, which represents it exactly.
    """
    largest = grid.groups(weight).abs().amax(dim=2)
    scale = largest / (grid.max_code / 2)
    scale = scale.masked_fill(scale == 0, 1.0)
    return scale, scale.new_full(scale.shape, 2 ** (grid.bits - 1))


def encode(weight: Tensor, scale: Tensor, zero: Tensor, grid: Grid) -> Tensor:
    """Codes in ``0 .. 2**bits - 1`` of the nearest grid points, shaped like ``weight``."""
    grouped = grid.groups(weight)
    codes = (grouped / scale.unsqueeze(2)).round() + zero.unsqueeze(2)
    return codes.clamp(0, grid.max_code).reshape(weight.shape)


def decode(codes: Tensor, scale: Tensor, zero: Tensor, grid: Grid) -> Tensor:
    """The weights that codes stand for: ``(code - zero) * scale``, shaped like ``codes``."""
    grouped = grid.groups(codes)
    return ((grouped - zero.unsqueeze(2)) * scale.unsqueeze(2)).reshape(codes.shape)


def step_size(weight: Tensor, grid: Grid) -> Tensor:
    """The grid's step (delta of eq. 6) at every weight, ``(out, in)``.

    It is 0 in an all-zero group, which rounding leaves as it is.
    """
    step = _steps(weight, grid).unsqueeze(2)
    return step.expand_as(grid.groups(weight)).reshape(weight.shape)


def step_sizes_at(weight: Tensor, positions: Tensor, grid: Grid) -> Tensor:
    """The entries of :func:`step_size` at flat ``positions (k,)``, without making the others."""
    # Groups are contiguous runs of the flat matrix, also across rows.
    return _steps(weight, grid).flatten()[positions // (grid.group_size or weight.shape[1])]


def _steps(weight: Tensor, grid: Grid) -> Tensor:
    low, high = _extremes(weight, grid)
    return (high - low) / grid.max_code


def _extremes(weight: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Least and greatest of each group and zero, ``(out, groups)``."""
    low, high = grid.groups(weight).aminmax(dim=2)
    return low.clamp(max=0), high.clamp(min=0)
