"""Sensitivity = size of the weight."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from npft.contracts import Scorer

if TYPE_CHECKING:
    from npft.artifacts import LanguageModel


class Magnitude(Scorer):
    """The magnitude ``|w|`` of each weight: needs no data, and is the usual naive baseline."""

    name: ClassVar[str] = "magnitude"

    def score(
        self, model: LanguageModel, batches: Iterable[Tensor]
    ) -> Iterator[tuple[str, Tensor]]:
        for name, layer in model.layers.items():
            with model.reading(name):
                values = layer.weight.float().abs()
            yield name, values
            del values
