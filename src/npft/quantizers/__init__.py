"""Built-in quantizers."""

from __future__ import annotations

from npft.contracts import Quantizer
from npft.hooks import hookimpl
from npft.quantizers.kmeans import KMeans
from npft.quantizers.rtn import RTN

__all__ = ["RTN", "KMeans"]


@hookimpl
def npft_quantizers() -> list[type[Quantizer]]:
    return [RTN, KMeans]
