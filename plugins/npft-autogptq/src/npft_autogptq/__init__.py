"""AutoGPTQ as an npft quantizer: ``npft run --quant autogptq``."""

from __future__ import annotations

from npft.contracts import Quantizer
from npft.hooks import hookimpl
from npft_autogptq.quantizer import AutoGPTQ


@hookimpl
def npft_quantizers() -> list[type[Quantizer]]:
    """The one quantizer of this package."""
    return [AutoGPTQ]
