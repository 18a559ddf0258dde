"""What a checkpoint format is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from npft.artifacts import LanguageModel, LinearLayer, PackedWeight, QuantizedModel
from npft.checkpoints.stored import Stored


class Format(ABC):
    """How the quantized weights of a model are laid out in a folder."""

    method: ClassVar[str]
    """The ``quant_method`` of ``config.json``."""

    def refusal(self, layer: LinearLayer, bits: int) -> str | None:
        """Why a layer cannot be stored, to go after "as", or None if it can."""
        return None

    def beside(self, model: LanguageModel) -> dict[str, Tensor]:
        """What loaders of this format want beside the weights of the model, by name."""
        return {}

    @abstractmethod
    def settings(self, quantized: QuantizedModel) -> dict[str, Any]:
        """The ``quantization_config`` of ``config.json``.

        Raises:
            NpftError: the format has no place for a part of the weights.
        """

    @abstractmethod
    def pack(self, weight: PackedWeight, settings: Mapping[str, Any]) -> dict[str, Tensor]:
        """What is stored of a weight, by suffix."""

    @abstractmethod
    def unpack(self, stored: Stored, settings: Mapping[str, Any]) -> PackedWeight:
        """The inverse of :meth:`pack`.

        Raises:
            NpftError: something is missing, of another shape, or out of range.
        """
