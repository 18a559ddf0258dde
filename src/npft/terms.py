"""The two terms of eq. 7, L(W + z + UV) and L(W + UV), and their gradients on one batch."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from npft.artifacts import LanguageModel
from npft.noise import Noise
from npft.passes import Passes


class Terms(Protocol):
    """Adds the gradients of one step to the adapter and tells its losses.

    Returns ``(noisy, clean)`` in nats per token, None for one that was not evaluated: scalars on
    the device, so that the host need not wait for them.
    """

    def __call__(self, tokens: Tensor) -> Losses:
        """Tokens ``(batch, context)``."""
        ...


Losses = tuple[Tensor | None, Tensor | None]


class Shaken:
    """Passes under fresh noise on the base weights."""

    def __init__(self, passes: Passes, adapted: LanguageModel, noise: Noise) -> None:
        self._passes = passes
        self._adapted = adapted
        self._noise = noise

    def learn(self, tokens: Tensor, original: object | None, weight: float) -> Tensor:
        """As :meth:`npft.passes.Passes.learn`, for L(W + z + UV)."""
        with self._noise.applied(self._adapted):
            return self._passes.learn(tokens, original, weight)


class BothTerms:
    r"""Each step takes :math:`L(W + z + UV) + \beta L(W + UV)`, eq. 7 as it stands."""

    def __init__(self, passes: Passes, shaken: Shaken, beta: float) -> None:
        self._passes = passes
        self._shaken = shaken
        self._beta = beta

    def __call__(self, tokens: Tensor) -> Losses:
        original = self._passes.original(tokens)
        noisy = self._shaken.learn(tokens, original, 1.0)
        if self._beta == 0:
            return noisy, None
        return noisy, self._passes.learn(tokens, original, self._beta)


class OneTerm:
    r"""Each step takes one term, the clean one with probability :math:`\beta / (1 + \beta)`.

    The expected gradient is that of eq. 7 over :math:`1 + \beta`; for the price of a step that
    takes both, two steps are made.
    """

    def __init__(
        self, passes: Passes, shaken: Shaken, beta: float, random: torch.Generator
    ) -> None:
        self._passes = passes
        self._shaken = shaken
        self._clean_share = beta / (1 + beta)
        self._random = random

    def __call__(self, tokens: Tensor) -> Losses:
        original = self._passes.original(tokens)
        if float(torch.rand((), generator=self._random)) < self._clean_share:
            return None, self._passes.learn(tokens, original, 1.0)
        return self._shaken.learn(tokens, original, 1.0), None


class NoNoise:
    """The control's step: without noise the terms of eq. 7 are one and the same."""

    def __init__(self, passes: Passes, beta: float) -> None:
        self._passes = passes
        self._factor = 1 + beta

    def __call__(self, tokens: Tensor) -> Losses:
        loss = self._passes.learn(tokens, self._passes.original(tokens), self._factor)
        return loss, loss
