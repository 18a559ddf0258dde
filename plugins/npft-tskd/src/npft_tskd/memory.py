"""What the student's attention maps were in earlier epochs, sample by sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

Key = int | str
"""What tells a sample from all others: its index, or a digest of it. 5 and "5" are the same."""


class Memory:
    """Attention maps of each sample and stage, from the last so many memory epochs.

    They are kept where they were made, in their dtype: ``capacity * samples * positions``
    numbers. A sample that comes twice in an epoch is remembered as it was the last time.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._epochs: dict[int, dict[str, list[Tensor]]] = {}

    def store(self, epoch: int, keys: Sequence[Key], maps: Sequence[Tensor]) -> None:
        """Remember a batch: for each stage ``(batch, *spatial)``, in the order of ``keys``.

        The oldest epoch is forgotten where this one is new and one too many.
        """
        kept = self._epochs.setdefault(epoch, {})
        for row, key in enumerate(keys):
            kept[str(key)] = [stage[row].detach().clone() for stage in maps]
        while len(self._epochs) > self._capacity:
            del self._epochs[min(self._epochs)]

    def recall(self, keys: Sequence[Key]) -> tuple[list[int], list[Tensor]]:
        """What is remembered of a batch.

        Returns:
            The places in ``keys`` of the samples that all ``capacity`` epochs remember, and for
            each stage ``(capacity, places, *spatial)``, oldest first. Without any such sample
            both are empty.
        """
        epochs = [self._epochs[epoch] for epoch in sorted(self._epochs)]
        names = [str(key) for key in keys]
        places = [
            place
            for place, name in enumerate(names)
            if len(epochs) == self._capacity and all(name in epoch for epoch in epochs)
        ]
        if not places:
            return [], []
        stages = range(len(epochs[0][names[places[0]]]))
        return places, [
            torch.stack(
                [torch.stack([epoch[names[place]][s] for place in places]) for epoch in epochs]
            )
            for s in stages
        ]

    def state(self) -> dict[str, Tensor]:
        """Everything remembered, as ``EPOCH.KEY.STAGE`` to a map."""
        return {
            f"{epoch}.{key}.{stage}": values
            for epoch, kept in self._epochs.items()
            for key, maps in kept.items()
            for stage, values in enumerate(maps)
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Remember exactly what :meth:`state` told."""
        self._epochs = {}
        for name in sorted(state, key=lambda name: int(name.rpartition(".")[2])):
            head, _, _ = name.rpartition(".")
            epoch, _, key = head.partition(".")
            self._epochs.setdefault(int(epoch), {}).setdefault(key, []).append(state[name])
