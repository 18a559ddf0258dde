"""GPTQModel as an npft quantizer: ``npft run --quant gptq``."""

from __future__ import annotations

from npft.contracts import Quantizer
from npft.hooks import hookimpl
from npft_gptq.quantizer import GPTQ


@hookimpl
def npft_quantizers() -> list[type[Quantizer]]:
    """The one quantizer of this package."""
    return [GPTQ]
