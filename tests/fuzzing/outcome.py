"""What became of the inputs of one target."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Any

INPUT = "input.pickle"


@dataclass
class Failure:
    """One way to go wrong: an example of what was said, the smallest input, and its size."""

    said: str
    place: str
    size: int = sys.maxsize
    count: int = 0


@dataclass
class Outcome:
    """How readers took damaged inputs.

    Attributes:
        slowest: seconds that the slowest input took, which is made from slowest_seed.
        memory: MB by which the process has grown at its peak.
        failures: by what went wrong.
    """

    target: str
    inputs: int = 0
    refused: int = 0
    accepted: int = 0
    slowest: float = 0.0
    slowest_seed: int = 0
    memory: float = 0.0
    failures: dict[str, Failure] = field(default_factory=dict)

    @classmethod
    def of(cls, values: dict[str, Any]) -> Outcome:
        """Out of JSON."""
        failures = {kind: Failure(**one) for kind, one in values["failures"].items()}
        return cls(**{**values, "failures": failures})
