"""Built-in sensitivity scorers."""

from __future__ import annotations

from npft.contracts import Scorer
from npft.hooks import hookimpl
from npft.scorers.fisher import Fisher
from npft.scorers.magnitude import Magnitude

__all__ = ["Fisher", "Magnitude"]


@hookimpl
def npft_scorers() -> list[type[Scorer]]:
    return [Fisher, Magnitude]
