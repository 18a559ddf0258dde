"""Which epochs store memories, and which review them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Role = Literal["plain", "memory", "review"]


@dataclass(frozen=True)
class Schedule:
    """At the end of every interval comes a memory epoch, or after enough of them a review epoch.

    The default is the paper's: with an interval of 5 epochs and three memories per review, epochs
    5, 10 and 15 store, epoch 20 reviews, and so on: 12 reviews in 240 epochs.

    Attributes:
        interval: epochs from one memory or review to the next.
        memories: how many memories each review looks back on.
    """

    interval: int = 5
    memories: int = 3

    def __post_init__(self) -> None:
        if self.interval < 1 or self.memories < 1:
            raise ValueError(
                f"no schedule with interval {self.interval} and {self.memories} memories: "
                "both are at least 1"
            )

    def role(self, epoch: int) -> Role:
        """What an epoch does; the first is number 0."""
        intervals, rest = divmod(epoch + 1, self.interval)
        if rest:
            return "plain"
        return "memory" if intervals % (self.memories + 1) else "review"

    def reviews(self, epochs: int) -> list[int]:
        """The review epochs of a training of so many epochs."""
        return [epoch for epoch in range(epochs) if self.role(epoch) == "review"]
