"""A quantized model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from npft.artifacts.model import LanguageModel
from npft.artifacts.weights import PackedWeight


@dataclass(frozen=True)
class QuantizedModel:
    """A quantized model that runs: its layers hold the dequantized weights.

    Attributes:
        weights: layer names to what is stored of them.
        group_size: inputs per group of the grid, 0 for one group per output channel.
        format: how :meth:`save` writes it, one of :data:`npft.checkpoints.FORMATS`.
        notes: what went otherwise than asked, such as a layer that fell back to rounding to
            nearest; each one sentence, without the quantizer's name.
        variant: what else tells this setting from others in a table, such as ``s0.5%``.
    """

    model: LanguageModel
    weights: Mapping[str, PackedWeight]
    quantizer: str
    bits: int
    group_size: int = 0
    format: str = "npft"
    notes: tuple[str, ...] = ()
    variant: str = ""

    @property
    def average_bits(self) -> float:
        """Stored bits per quantized weight: codes, 16-bit scales and codebooks, sparse parts."""
        stored = sum(weight.storage_bits for weight in self.weights.values())
        return stored / sum(weight.codes.numel() for weight in self.weights.values())

    @property
    def label(self) -> str:
        """``NAME-BITS``, with ``-gGROUP`` and ``-VARIANT``: the checkpoint's folder name."""
        return label(self.quantizer, self.bits, self.group_size, self.variant)

    def save(self, folder: Path) -> None:
        """Write the checkpoint in its format; see :mod:`npft.checkpoints`.

        Raises:
            NpftError: the format cannot hold these weights, or its library is missing.
        """
        from npft import checkpoints

        checkpoints.save(self, folder)


def label(quantizer: str, bits: int, group_size: int = 0, variant: str = "") -> str:
    """The one spelling of a quantizer's setting: ``rtn-4``, ``rtn-4-g64``, ``kmeans-3-s0.5%``."""
    group = f"g{group_size}" if group_size else ""
    return "-".join(part for part in (quantizer, str(bits), group, variant) if part)
