"""Temporal supervised distillation; as an npft objective: ``npft run --objective tskd``."""

from __future__ import annotations

from npft.contracts import Objective
from npft.hooks import hookimpl
from npft_tskd.objective import TSKD


@hookimpl
def npft_objectives() -> list[type[Objective]]:
    """The one objective of this package."""
    return [TSKD]
