"""AWQ as an npft quantizer: ``npft run --quant awq``."""

from __future__ import annotations

from npft.contracts import Quantizer
from npft.hooks import hookimpl
from npft_awq.quantizer import AWQ


@hookimpl
def npft_quantizers() -> list[type[Quantizer]]:
    """The one quantizer of this package."""
    return [AWQ]
