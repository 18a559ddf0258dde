"""The two terms of eq. 7, L(W + z + UV) and L(W + UV), and their gradients on one batch."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Protocol

import torch
from peft import PeftModel
from torch import Tensor

from npft.adapters import Switches
from npft.artifacts import LanguageModel
from npft.contracts import Loss, Objective
from npft.finite import first_bad_layer
from npft.noise import Noise
from npft.processes import ALONE, Processes

_SMALLEST = 1e-3  # nats: below this a loss is as good as zero, and its logarithm no guide


class Terms(Protocol):
    """Adds the gradients of one step to the adapter and tells its losses.

    Returns ``(noisy, clean)`` in nats per token, None for one that was not evaluated: scalars on
    the device, so that the host need not wait for them.
    """

    def __call__(self, tokens: Tensor) -> Losses:
        """Tokens ``(batch, context)``."""
        ...


Losses = tuple[Tensor | None, Tensor | None]


class Student:
    """The adapted model's loss on a batch, with or without noise on the base weights."""

    def __init__(
        self,
        wrapped: PeftModel,
        adapted: LanguageModel,
        objective: Objective,
        begun: Loss,
        noise: Noise | None,
        processes: Processes = ALONE,
    ) -> None:
        """``processes`` take a share of each batch, and their gradients add up to the whole."""
        self._processes = processes
        self._wrapped = wrapped
        self._switches = Switches(wrapped)
        self._adapted = adapted
        self._objective = objective
        self._begun = begun
        self._noise = noise

    def original(self, tokens: Tensor) -> object | None:
        """The original model's output: this one with its adapter off, so no second copy is held."""
        if not self._objective.needs_original:
            return None
        with torch.no_grad(), self._switches.without_adapter():
            return self._forward(self._mine(tokens)[0])

    def clean(self, tokens: Tensor, original: object | None, scale: Scale) -> Tensor:
        """Backward through ``scale(L(W + UV))``; L."""
        with self._switches.dropout():  # backward too: it may run blocks again
            mine, weight = self._mine(tokens)
            own = self._begun.loss(self._forward(mine), mine, original)
            loss = self._processes.mean(own, weight)
            scale(loss).backward()
        return loss.detach()

    def noisy(self, tokens: Tensor, original: object | None, scale: Scale) -> Tensor:
        """Backward through ``scale(L(W + z + UV))`` with fresh noise z; L."""
        assert self._noise is not None
        with self._noise.applied(self._adapted):
            return self.clean(tokens, original, scale)

    def first_bad_layer(self, tokens: Tensor) -> str:
        """Where the numbers first go bad on these tokens, under fresh noise."""
        with nullcontext() if self._noise is None else self._noise.applied(self._adapted):
            return first_bad_layer(self._adapted, lambda: self._forward(tokens))

    def _mine(self, tokens: Tensor) -> tuple[Tensor, float]:
        return self._processes.part(tokens, divide=self._objective.averages_over_windows)

    def _forward(self, tokens: Tensor) -> object:
        hidden = self._objective.needs_hidden_states
        return self._wrapped(input_ids=tokens, output_hidden_states=hidden, use_cache=False)


Scale = Callable[[Tensor], Tensor]
"""What becomes of a loss before its gradient is taken."""


def plain(loss: Tensor) -> Tensor:
    """The loss itself."""
    return loss


def balanced(loss: Tensor) -> Tensor:
    """The loss divided by its own size, whose gradient is that of its logarithm.

    Coarse grids lose a hundred times more than fine ones; undivided, theirs would be the only
    gradients that count.
    """
    return loss / loss.detach().clamp(min=_SMALLEST)


class BothTerms:
    r"""Each step takes :math:`L(W + z + UV) + \beta L(W + UV)`, eq. 7 as it stands."""

    def __init__(self, student: Student, beta: float, scale: Scale) -> None:
        self._student = student
        self._beta = beta
        self._scale = scale

    def __call__(self, tokens: Tensor) -> Losses:
        original = self._student.original(tokens)
        noisy = self._student.noisy(tokens, original, self._scale)
        if self._beta == 0:
            return noisy, None
        return noisy, self._student.clean(tokens, original, self._weighted)

    def _weighted(self, loss: Tensor) -> Tensor:
        return self._beta * self._scale(loss)


class OneTerm:
    r"""Each step takes one term, the clean one with probability :math:`\beta / (1 + \beta)`.

    The expected gradient is that of eq. 7 over :math:`1 + \beta`; for the price of a step that
    takes both, two steps are made.
    """

    def __init__(
        self, student: Student, beta: float, scale: Scale, random: torch.Generator
    ) -> None:
        self._student = student
        self._clean_share = beta / (1 + beta)
        self._scale = scale
        self._random = random

    def __call__(self, tokens: Tensor) -> Losses:
        original = self._student.original(tokens)
        if float(torch.rand((), generator=self._random)) < self._clean_share:
            return None, self._student.clean(tokens, original, self._scale)
        return self._student.noisy(tokens, original, self._scale), None


class NoNoise:
    """The control's step: without noise the terms of eq. 7 are one and the same."""

    def __init__(self, student: Student, beta: float) -> None:
        self._student = student
        self._factor = 1 + beta

    def __call__(self, tokens: Tensor) -> Losses:
        original = self._student.original(tokens)
        loss = self._student.clean(tokens, original, lambda loss: self._factor * loss)
        return loss, loss
