"""Wall-clock seconds by stage."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Adds up the seconds of stages; one inside another counts for itself only."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._inside: list[str] = []
        self._since = 0.0

    @contextmanager
    def timing(self, stage: str) -> Iterator[None]:
        """Add the time spent in this scope to ``stage``."""
        self._add()
        self._inside.append(stage)
        try:
            yield
        finally:
            self._add()
            self._inside.pop()

    def _add(self) -> None:
        now = time.perf_counter()
        if self._inside:
            stage = self._inside[-1]
            self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._since
        self._since = now
