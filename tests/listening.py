"""A progress that remembers what it was told, and can stop the work."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


class Stopped(BaseException):
    """As sudden as Ctrl-C."""


class Listener:
    """What was worked on, by label with the number of items, and what was said.

    With ``stop = (label, n)``, work under that label is stopped before its item n.
    """

    def __init__(self, stop: tuple[str, int] | None = None) -> None:
        self.work: dict[str, int] = {}
        self.notes: list[str] = []
        self._stop = stop

    def track(self, items: Iterable[T], label: str, total: int) -> Iterator[T]:
        self.work[label] = 0
        for item in items:
            if self._stop == (label, self.work[label]):
                raise Stopped
            self.work[label] += 1
            yield item

    def note(self, message: str) -> None:
        self.notes.append(message)

    def kinds(self) -> set[str]:
        """The first words of the labels."""
        return {label.split()[0] for label in self.work}
