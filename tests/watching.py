"""Progress that remembers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any


class Watching:
    """How far each bar came of its total, and every note."""

    def __init__(self) -> None:
        self.done: dict[str, list[int]] = {}
        self.notes: list[str] = []

    def track(self, items: Iterable[Any], label: str, total: int) -> Iterator[Any]:
        self.done[label] = [0, total]
        for item in items:
            self.done[label][0] += 1
            yield item

    def note(self, message: str) -> None:
        self.notes.append(message)
