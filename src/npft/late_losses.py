"""The losses of training steps, read from the device late so that no step waits for its own."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from npft.artifacts import StepLoss
from npft.errors import NpftError

EVERY = 16
"""Steps between two readings on a device that works ahead of the host."""


class LateLosses:
    """Takes each step's losses as tensors and reads many at a time.

    A loss that is not finite is found some steps late, but told by its own step.
    """

    def __init__(self, device: torch.device) -> None:
        self._every = 1 if device.type == "cpu" else EVERY
        self._waiting: list[tuple[int, Tensor | None, Tensor | None]] = []
        self._read: list[StepLoss] = []

    def add(self, step: int, noisy: Tensor | None, clean: Tensor | None) -> None:
        """Note the losses of one step, None for a term that it did not take.

        Raises:
            NpftError: as :meth:`all`.
        """
        self._waiting.append((step, noisy, clean))
        if len(self._waiting) >= self._every:
            self.all()

    def all(self) -> list[StepLoss]:
        """Every loss so far.

        Raises:
            NpftError: one is NaN or infinite; its step is named.
        """
        terms = [term for _, *both in self._waiting for term in both if term is not None]
        values = iter(torch.stack(terms).tolist() if terms else [])
        for step, *both in self._waiting:
            noisy, clean = (None if term is None else _finite(step, next(values)) for term in both)
            self._read.append(StepLoss(step, noisy, clean))
        self._waiting.clear()
        return self._read


def _finite(step: int, value: float) -> float:
    if not math.isfinite(value):
        raise NpftError(
            f"the tuning loss became {value} at step {step}: lower tuning.lr or the noise, or "
            "tune in float32"
        )
    return value
