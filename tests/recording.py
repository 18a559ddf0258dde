"""Plugins that report what happens during tuning."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from npft.artifacts import LanguageModel, Outliers
from npft.contracts import Objective, Sampler
from npft.grid import Grid
from npft.objectives import CrossEntropy


def scripted(draw: Callable[[Tensor, Tensor, Grid, torch.Generator], Tensor]) -> Sampler:
    """A sampler that calls ``draw(weight, positions, grid, generator)``."""

    class Scripted(Sampler):
        name: ClassVar[str] = "scripted"

        def sample(
            self, weight: Tensor, positions: Tensor, grid: Grid, generator: torch.Generator
        ) -> Tensor:
            return draw(weight, positions, grid, generator)

    return Scripted()


def constant(size: float) -> Sampler:
    """The same noise everywhere and always."""
    return scripted(lambda weight, positions, *_: weight.new_full(positions.shape, size))


def uniform(width: float) -> Sampler:
    """Independent noise on ``-width / 2 .. width / 2``."""
    return scripted(
        lambda weight, positions, _, generator: (
            width * (torch.rand(positions.shape, generator=generator, dtype=weight.dtype) - 0.5)
        )
    )


def observed(
    see: Callable[[Any, Tensor, Any | None], None], objective: Objective | None = None
) -> Objective:
    """An objective that calls ``see(student, tokens, original)`` before the real one."""
    real = objective or CrossEntropy()

    class Observed(Objective):
        name: ClassVar[str] = "observed"
        needs_original: ClassVar[bool] = real.needs_original

        def loss(self, student: Any, tokens: Tensor, original: Any | None) -> Tensor:
            see(student, tokens, original)
            return real.loss(student, tokens, original)

    return Observed()


def weights_of(model: LanguageModel) -> dict[str, Tensor]:
    """Copies of the stored layer weights: the base ones where an adapter is attached."""
    return {name: layer.weight.clone() for name, layer in model.layers.items()}


def everywhere(model: LanguageModel) -> dict[str, Outliers]:
    """Outliers of gamma = 1."""
    return {n: Outliers((x.out_features, x.in_features), None) for n, x in model.layers.items()}


def some(model: LanguageModel, share: float = 0.1, seed: int = 0) -> dict[str, Outliers]:
    """Random outliers of every layer."""
    random = torch.Generator().manual_seed(seed)
    chosen = {}
    for name, layer in model.layers.items():
        numel = layer.in_features * layer.out_features
        order = torch.randperm(numel, generator=random)[: int(share * numel)]
        chosen[name] = Outliers((layer.out_features, layer.in_features), order.sort().values)
    return chosen
