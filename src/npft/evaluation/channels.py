"""Outliers of one input channel, unfolded over the output channels (Figure 3 of NPFT)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from npft.artifacts import LanguageModel, Outliers


class Channel(NamedTuple):
    """An input channel of a layer: one column of its weight ``(out, in)``."""

    layer: str
    input: int


def fullest_channels(model: LanguageModel, outliers: Mapping[str, Outliers]) -> list[Channel]:
    """The input channel with the most outliers, of all attention and of all MLP layers.

    Outliers gather in few input channels, so these hold many. The first of several equal ones is
    taken; a kind of layer without any outliers has none.
    """
    most: dict[str, int] = {}
    fullest: dict[str, Channel] = {}
    for name, found in outliers.items():
        kind, inputs = model.layers[name].kind, found.shape[1]
        counts = torch.bincount(found.indices() % inputs, minlength=inputs).cpu()
        if int(counts.max()) > most.get(kind, 0):
            most[kind] = int(counts.max())
            fullest[kind] = Channel(name, int(counts.argmax()))
    return list(fullest.values())


def unfold(scores: Tensor, outliers: Outliers, channel: int) -> tuple[Tensor, Tensor]:
    """The outliers of one input channel: their output channels and scores, each ``(n,)``.

    Args:
        scores: ``(out, in)``.
        outliers: positions in it.
        channel: the input, below ``in``.
    """
    positions = outliers.indices(scores.device)
    positions = positions[positions % scores.shape[1] == channel]
    return positions // scores.shape[1], scores.flatten()[positions]


class Watch:
    """Keeps the unfolded scores of some channels while a scorer's stream passes.

    ``seen`` maps each channel to what :func:`unfold` gives of it, on the CPU.
    """

    def __init__(self, channels: list[Channel], outliers: Mapping[str, Outliers]) -> None:
        self.seen: dict[Channel, tuple[Tensor, Tensor]] = {}
        self._channels = channels
        self._outliers = outliers

    def pass_on(self, scores: Iterator[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """The stream, unchanged."""
        for name, values in scores:
            for channel in self._channels:
                if channel.layer == name:
                    rows, found = unfold(values, self._outliers[name], channel.input)
                    self.seen[channel] = (rows.cpu(), found.cpu())
            yield name, values
            del values  # before the scorer makes the next
