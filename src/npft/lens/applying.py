"""Perturbations put on a model's weights and activations, and taken off again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from npft.artifacts import LanguageModel

Change = Callable[[str, Tensor], Tensor]
"""Layer name and vectors ``(rows, n)`` to their perturbation ``(rows, n)``, all float32."""


class Seen:
    """What perturbations were like: means over matrices, or over layers and batches."""

    def __init__(self) -> None:
        self._norms: list[float] = []
        self._correlations: list[float] = []

    def note(self, values: Tensor, perturbation: Tensor) -> None:
        size = values.norm(dim=1)
        ratio = (perturbation.norm(dim=1) / size)[size > 0]
        if len(ratio):
            self._norms.append(float(ratio.mean()))
        self._correlations.append(correlation(values, perturbation))

    @property
    def norm(self) -> float:
        """Mean of ``norm(perturbation) / norm(values)`` over vectors that are not all zeros."""
        return sum(self._norms) / max(1, len(self._norms))

    @property
    def correlation(self) -> float:
        """Mean of Pearson's correlation between ``|perturbation|`` and ``|values|``."""
        return sum(self._correlations) / len(self._correlations)


def correlation(values: Tensor, perturbation: Tensor) -> float:
    """Pearson's correlation of the sizes; 0 where one of them does not vary."""
    one, two = (part.abs().flatten() - part.abs().mean() for part in (values, perturbation))
    scale = one.norm() * two.norm()
    # A constant's deviations are rounding errors, not exactly 0.
    floor = 1e-5 * values.norm() * perturbation.norm()
    return float(one @ two / scale) if bool(scale > floor) else 0.0


@contextmanager
def on_weights(model: LanguageModel, change: Change, seen: Seen) -> Iterator[None]:
    """Within this scope every linear layer's weight is perturbed, each matrix as one vector."""
    saved: list[tuple[Tensor, Tensor]] = []
    try:
        with torch.no_grad():
            for name, layer in model.layers.items():
                weight = layer.weight
                vector = weight.float().reshape(1, -1)
                added = change(name, vector)
                seen.note(vector, added)
                saved.append((weight, weight.clone()))
                weight.copy_((vector + added).view(weight.shape))
        yield
    finally:
        with torch.no_grad():
            for weight, before in saved:
                weight.copy_(before)


@contextmanager
def on_activations(model: LanguageModel, change: Change, seen: Seen) -> Iterator[None]:
    """Within this scope every linear layer's input is perturbed, each token as one vector.

    Layers that share an input, such as the three projections of attention, get it perturbed
    independently, by noise of their own.
    """

    def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
        def perturb(_module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            given: Tensor = inputs[0]
            vectors = given.float().reshape(-1, given.shape[-1])
            added = change(name, vectors)
            seen.note(vectors, added)
            return ((vectors + added).view(given.shape).to(given.dtype), *inputs[1:])

        return perturb

    handles = []
    try:
        for name, layer in model.layers.items():
            handles.append(layer.module.register_forward_pre_hook(hook(name)))
        yield
    finally:
        for handle in handles:
            handle.remove()
