"""Variants of the default recipe that are no options, each a scope around the tuning."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib import import_module
from unittest.mock import patch

import torch

from npft import terms
from npft.adapters import AdaptedLayer
from npft.artifacts import LanguageModel
from npft.grid import Grid, step_size
from npft.passes import Direct


@contextmanager
def ascent(_: LanguageModel) -> Iterator[None]:
    r"""The worst noise in the box instead of the residual: :math:`z = \Delta/2\,\mathrm{sign}(g)`.

    The direction of sharpness-aware minimisation (arXiv 2010.01412) in the maximum norm, as in
    ASAM's and adversarial training's inner step. As the KL has no gradient at the start, g is
    taken at weights that carry the recipe's own noise.
    """
    where = import_module("npft.tuning.tune")  # the package has a function of this name
    directly = patch.object(where, "replayable", lambda *_: False)  # for the loss by itself
    with patch.object(where, "Shaken", Ascending), directly:
        yield


class Ascending(terms.Shaken):
    """Passes under noise that climbs the loss."""

    def learn(self, tokens: torch.Tensor, original: object | None, weight: float) -> torch.Tensor:
        """See :meth:`npft.terms.Shaken.learn`."""
        assert isinstance(self._passes, Direct)
        layers = [x for x in self._adapted.layers.values() if isinstance(x, AdaptedLayer)]
        weights = [layer.module.weight for layer in layers]
        for matrix in weights:
            matrix.requires_grad_(True)
        with self._noise.applied(self._adapted):
            gradients = torch.autograd.grad(self._passes.loss(tokens, original), weights)
        for matrix in weights:
            matrix.requires_grad_(False)
        kept = [matrix.detach().clone() for matrix in weights]
        with torch.no_grad():
            for layer, gradient in zip(layers, gradients, strict=True):
                climbing = gradient.T.sign() if layer.transposed else gradient.sign()
                layer.base.add_(step_size(layer.weight, Grid(4)) / 2 * climbing)
        try:
            return self._passes.learn(tokens, original, weight)
        finally:
            with torch.no_grad():
                for matrix, before in zip(weights, kept, strict=True):
                    matrix.copy_(before)


VARIANTS: dict[str, Callable[[LanguageModel], AbstractContextManager[None]]] = {
    "tuned": lambda _: nullcontext(),
    "ascent": ascent,
}
"""By the word in ``Case.trains``."""
