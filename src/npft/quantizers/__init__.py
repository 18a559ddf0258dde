"""Built-in quantizers."""

from __future__ import annotations

from npft.contracts import Quantizer
from npft.hooks import hookimpl
from npft.quantizers.kmeans import KMeans
from npft.quantizers.nonuniform import Nonuniform
from npft.quantizers.rtn import RTN

__all__ = ["RTN", "KMeans", "Nonuniform"]


@hookimpl
def npft_quantizers() -> list[type[Quantizer]]:
    return [RTN, KMeans, Nonuniform]
