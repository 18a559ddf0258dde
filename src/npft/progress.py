"""How a stage tells that it is alive, without knowing who listens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

T = TypeVar("T")


class Progress(Protocol):
    """What the stages call; the command line draws bars with it."""

    def track(self, items: Iterable[T], label: str, total: int) -> Iterator[T]:
        """Yield ``items`` unchanged while showing how many of ``total`` are done."""
        ...

    def note(self, message: str) -> None:
        """Say one thing that the user should know."""
        ...


class Silent:
    """Progress for library use and tests: shows nothing."""

    def track(self, items: Iterable[T], label: str, total: int) -> Iterator[T]:
        yield from items

    def note(self, message: str) -> None:
        pass
