"""What training steps say of themselves, read late: the host does not wait for the device."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

EVERY = 16
"""Steps between two readings on a device that works behind the host."""


@dataclass(frozen=True)
class Told:
    """One step, in numbers.

    Attributes:
        step: its number.
        noisy: the loss under noise, None if the step did not take it.
        clean: the loss without, likewise.
        norms: the norms of the gradients, by parameter.
    """

    step: int
    noisy: float | None
    clean: float | None
    norms: dict[str, float]

    @property
    def finite(self) -> bool:
        """Whether all of it is."""
        return self.finite_losses and all(map(math.isfinite, self.norms.values()))

    @property
    def finite_losses(self) -> bool:
        """Whether the losses are."""
        return all(math.isfinite(loss) for loss in (self.noisy, self.clean) if loss is not None)


class Late:
    """Holds what steps say as tensors until :meth:`read`."""

    def __init__(self, device: torch.device) -> None:
        self._every = 1 if device.type == "cpu" else EVERY
        self._waiting: list[tuple[int, Tensor | None, Tensor | None, tuple[str, ...], Tensor]] = []

    @property
    def due(self) -> bool:
        """Whether it is time to read."""
        return len(self._waiting) >= self._every

    def add(
        self,
        step: int,
        noisy: Tensor | None,
        clean: Tensor | None,
        names: tuple[str, ...],
        norms: Tensor,
    ) -> None:
        """Note one step; ``norms (parameters,)`` are those of ``names``."""
        self._waiting.append((step, noisy, clean, names, norms))

    def read(self) -> list[Told]:
        """All that waited, in one transfer."""
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return []
        parts = [
            part.detach().float().reshape(-1)
            for _, noisy, clean, _, norms in waiting
            for part in (noisy, clean, norms)
            if part is not None
        ]
        values = iter(torch.cat(parts).tolist())
        return [
            Told(
                step,
                None if noisy is None else next(values),
                None if clean is None else next(values),
                {name: next(values) for name in names},
            )
            for step, noisy, clean, names, _ in waiting
        ]
