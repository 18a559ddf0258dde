"""The formats by name."""

from __future__ import annotations

from npft.artifacts import LanguageModel
from npft.checkpoints.awq import AwqFormat
from npft.checkpoints.compressed import CompressedTensors
from npft.checkpoints.format import Format
from npft.checkpoints.gptq import GptqFormat
from npft.checkpoints.npft import NpftFormat
from npft.contracts import Quantizer
from npft.errors import NpftError, Unavailable

FORMATS: dict[str, Format] = {
    "npft": NpftFormat(),
    "gptq": GptqFormat(),
    "awq": AwqFormat(),
    "compressed-tensors": CompressedTensors(),
}
"""Names of the formats, as ``QuantizedModel.format`` has them."""


def by_name(name: str) -> Format:
    """The format that ``QuantizedModel.format`` names.

    Raises:
        NpftError: there is no such format.
    """
    if name not in FORMATS:
        raise NpftError(f"format {name!r} is unknown: use {', '.join(FORMATS)}")
    return FORMATS[name]


def by_method(method: object) -> Format:
    """The format that a ``config.json`` names by its ``quant_method``.

    Raises:
        NpftError: npft cannot read it.
    """
    for found in FORMATS.values():
        if method == found.method:
            return found
    readable = ", ".join(found.method for found in FORMATS.values())
    raise NpftError(f"its quant_method is {method!r}, and npft reads {readable}")


def check(quantizer: Quantizer, model: LanguageModel) -> None:
    """Refuse, before any work, a model that the quantizer's format cannot hold.

    Raises:
        Unavailable: a width, group size or layer that the format has no place for, or a library
            that writes it is missing.
    """
    name = quantizer.checkpoint_format
    form = by_name(name)
    for layer in model.layers.values():
        why = form.refusal(layer, quantizer.bits)
        if why is not None:
            raise Unavailable(
                f"{quantizer.label} cannot be written as {name}, as {why}: choose another format"
            )
