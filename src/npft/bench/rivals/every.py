"""All rivals, in the order of the table."""

from __future__ import annotations

from npft.bench.rivals.any_precision import ANY_PRECISION
from npft.bench.rivals.flute import FLUTE
from npft.bench.rivals.gptqmodel import MARLIN, TRITON
from npft.bench.rivals.pytorch import INT4
from npft.bench.rivals.rival import Rival

RIVALS: dict[str, Rival] = {
    rival.name: rival for rival in (INT4, MARLIN, TRITON, *FLUTE, *ANY_PRECISION)
}
"""By name. cuBLAS is not among them: it is what everything is compared with."""
