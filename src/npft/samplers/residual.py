"""The error that quantizers really make, as noise."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from npft.artifacts import PackedWeight
from npft.contracts import Draw, Sampler
from npft.grid import Grid
from npft.quantizers.kmeans import Following, KMeans
from npft.quantizers.rtn import RTN


class Residual(Sampler):
    r"""The real residual ``Q(w) - w`` of a quantizer drawn at random for each step.

    With base weight W and adapter UV the forward pass then sees exactly ``Q(W + UV)``, while the
    gradient passes straight through to the adapter, as in quantization-aware training. Drawing
    among several quantizers and bit widths keeps what is learned from fitting only one of them.
    All matrices of a step have the same one, as they will have when they are quantized.
    The residual of a given quantizer is not random; its mean over a matrix is near zero, but not
    exactly so.
    """

    name: ClassVar[str] = "residual"
    quantizers: tuple[Literal["rtn", "kmeans"], ...] = Field(
        ("rtn", "kmeans"),
        min_length=1,
        description="whose residuals, one drawn each time; a name given twice comes twice as often",
    )

    @property
    def needs_sensitivity(self) -> bool:
        """Only k-means does."""
        return "kmeans" in self.quantizers

    def each_step(self, generator: torch.Generator) -> Sampler:
        drawn = self.quantizers[_index(len(self.quantizers), generator)]
        return self.model_copy(update={"quantizers": (drawn,)})

    def bind(self, weight: Tensor, sensitivity: Tensor | None) -> Draw:
        return _Residuals(self.quantizers, sensitivity)

    def sample(
        self, weight: Tensor, positions: Tensor, grid: Grid, generator: torch.Generator
    ) -> Tensor:
        return self.bind(weight, None).sample(weight, positions, grid, generator)


class _Residuals:
    """The quantizers of one matrix; each one's search is done when it is first drawn."""

    def __init__(self, quantizers: tuple[str, ...], sensitivity: Tensor | None) -> None:
        self._quantizers = quantizers
        self._sensitivity = sensitivity
        self._quantize: dict[tuple[str, Grid], Callable[[Tensor], PackedWeight]] = {}

    def sample(
        self, weight: Tensor, positions: Tensor, grid: Grid, generator: torch.Generator
    ) -> Tensor:
        name = self._quantizers[_index(len(self._quantizers), generator)]
        key = (name, grid)
        if key not in self._quantize:
            quantizer = (
                KMeans(bits=grid.bits)
                if name == "kmeans"
                else RTN(bits=grid.bits, group_size=grid.group_size)
            )
            self._quantize[key] = quantizer.follow(weight.float(), self._sensitivity)
        rounded = self._quantize[key](weight.float()).dequantize().to(weight.dtype)
        return torch.take(rounded - weight, positions)

    def state(self) -> dict[str, Tensor]:
        """The codebooks, by the grid they are for."""
        return {
            f"{grid.bits}-{grid.group_size}": quantize.codebook
            for (_, grid), quantize in self._quantize.items()
            if isinstance(quantize, Following)
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        for key, codebook in state.items():
            grid = Grid(*map(int, key.split("-")))
            following = Following(codebook, self._sensitivity, grid.bits)
            self._quantize["kmeans", grid] = following


def _index(count: int, generator: torch.Generator) -> int:
    if count == 1:
        return 0
    return int(torch.randint(count, (), generator=generator, device=generator.device))
