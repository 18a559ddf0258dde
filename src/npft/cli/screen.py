"""What a verb shows: progress and notes on standard error, results on standard output."""

from __future__ import annotations

import json
import logging
import sys
import time
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from npft.artifacts import Report
from npft.errors import printable
from npft.report import table

T = TypeVar("T")


class Screen:
    """Progress for people: a bar per stage on a terminal, plain lines elsewhere.

    Args:
        quiet: show nothing.
        every: seconds between two lines of a stage.
    """

    def __init__(self, *, quiet: bool = False, every: float = 30.0) -> None:
        quiet_libraries()
        self._quiet = quiet
        self._every = every
        self._console = Console(stderr=True)

    def track(self, items: Iterable[T], label: str, total: int) -> Iterator[T]:
        if self._quiet:
            yield from items
        elif self._console.is_terminal:
            yield from self._bar(items, label, total)
        else:
            yield from self._lines(items, label, total)

    def note(self, message: str) -> None:
        if not self._quiet:
            print(f"npft: {printable(message)}", file=sys.stderr, flush=True)

    def _lines(self, items: Iterable[T], label: str, total: int) -> Iterator[T]:
        start = last = time.perf_counter()
        for done, item in enumerate(items):
            now = time.perf_counter()
            if done and now - last >= self._every:
                left = (now - start) / done * (total - done)
                words = f"{left / 60:.0f} min" if left > 90 else f"{left:.0f} s"
                print(
                    f"{printable(label)}: {done} of {total}, {words} left",
                    file=sys.stderr,
                    flush=True,
                )
                last = now
            yield item
        seconds = time.perf_counter() - start
        print(f"{printable(label)}: {total} in {seconds:.1f} s", file=sys.stderr, flush=True)

    def _bar(self, items: Iterable[T], label: str, total: int) -> Iterator[T]:
        columns = (
            TextColumn("{task.description:<36}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self._console) as progress:
            yield from progress.track(items, total=total, description=printable(label))


def show(report: Report, *, as_json: bool) -> None:
    """The results: a table for people, or one JSON object."""
    if as_json:
        print(json.dumps(asdict(report), indent=2))
    else:
        console = Console()
        # A table that is piped into a file should not be folded to the width of a terminal.
        Console(width=None if console.is_terminal else 120).print(table.render(report))


def quiet_libraries() -> None:
    """Keep other libraries' bars and warnings out of ours."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="(peft|transformers|torch|gguf)")
