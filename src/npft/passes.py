"""The passes through the network of which a tuning step is made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from peft import PeftModel
from torch import Tensor

from npft.adapters import Switches, trainable
from npft.contracts import Loss, Objective
from npft.processes import Processes

Scale = Callable[[Tensor], Tensor]
"""What becomes of a loss before its gradient is taken."""

_SMALLEST = 1e-3  # nats: below this a loss is as good as zero, and its logarithm no guide


def plain(loss: Tensor) -> Tensor:
    """The loss itself."""
    return loss


def balanced(loss: Tensor) -> Tensor:
    """The loss divided by its own size, whose gradient is that of its logarithm.

    Coarse grids lose a hundred times more than fine ones; undivided, theirs would be the only
    gradients that count.
    """
    return loss / loss.detach().clamp(min=_SMALLEST)


class Passes(Protocol):
    """Passes through an adapted model as its weights are when they are called."""

    def original(self, tokens: Tensor) -> object | None:
        """The original model's output on ``tokens (batch, context)``, if the objective wants it.

        It is the adapted model with its adapter off, so no second copy is held. The output is
        good until this is called again.
        """
        ...

    def learn(self, tokens: Tensor, original: object | None, weight: float) -> Tensor:
        """Add the gradient of ``weight * scale(L)`` to the adapter's; L, a scalar on the device."""
        ...

    def forget(self) -> None:
        """Let the gradients start from nothing, after a step."""
        ...

    def release(self) -> None:
        """Give back, between two steps, the memory that lasts from step to step."""
        ...


class Direct:
    """Launches every pass anew."""

    def __init__(
        self,
        wrapped: PeftModel,
        objective: Objective,
        begun: Loss,
        scale: Scale,
        processes: Processes,
    ) -> None:
        """``processes`` take a share of each batch, and their gradients add up to the whole."""
        self.adapter = trainable(wrapped)
        self.needs_original = objective.needs_original
        self._processes = processes
        self._wrapped = wrapped
        self._switches = Switches(wrapped)
        self._objective = objective
        self._begun = begun
        self._scale = scale

    def original(self, tokens: Tensor) -> object | None:
        """As :meth:`Passes.original`."""
        if not self.needs_original:
            return None
        with torch.no_grad(), self._switches.without_adapter():
            return self.forward(self._mine(tokens)[0])

    def learn(self, tokens: Tensor, original: object | None, weight: float | Tensor) -> Tensor:
        """As :meth:`Passes.learn`."""
        with self._switches.dropout():  # backward too: it may run blocks again
            loss = self.loss(tokens, original)
            (weight * self._scale(loss)).backward()
        return loss.detach()

    def loss(self, tokens: Tensor, original: object | None) -> Tensor:
        """L, with its graph for the backward pass."""
        mine, share = self._mine(tokens)
        own = self._begun.loss(self.forward(mine), mine, original)
        return self._processes.mean(own, share)

    def forget(self) -> None:
        """As :meth:`Passes.forget`."""
        for parameter in self.adapter:
            parameter.grad = None

    def release(self) -> None:
        """As :meth:`Passes.release`: none does."""

    def forward(self, tokens: Tensor) -> object:
        """The model's output, with its adapter unless that is off."""
        hidden = self._objective.needs_hidden_states
        return self._wrapped(input_ids=tokens, output_hidden_states=hidden, use_cache=False)

    def _mine(self, tokens: Tensor) -> tuple[Tensor, float]:
        return self._processes.part(tokens, divide=self._objective.averages_over_windows)
