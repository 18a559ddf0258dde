"""Built-in tuning objectives."""

from __future__ import annotations

from npft.contracts import Objective
from npft.hooks import hookimpl
from npft.objectives.cross_entropy import CrossEntropy
from npft.objectives.kl import KL

__all__ = ["KL", "CrossEntropy"]


@hookimpl
def npft_objectives() -> list[type[Objective]]:
    return [CrossEntropy, KL]
