"""What a launcher's several processes do on the command line: one of them speaks."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from npft.config import RunConfig
    from npft.processes import Processes

SHARED = ("run", "score", "tune")
"""The verbs that several processes share; the main one does the others alone."""


def idle(verb: str | None) -> bool:
    """Whether this process has no part in a verb: it is not the main one, which does it alone."""
    launched = int(os.environ.get("LOCAL_RANK", -1)) >= 0
    return launched and int(os.environ.get("RANK", 0)) > 0 and verb not in SHARED


@contextmanager
def together(configured: Callable[[], RunConfig]) -> Iterator[tuple[RunConfig, Processes]]:
    """The configuration, as the main process has it, and the processes that share the work.

    Where the work fails in any of them, one tells why, and all end.
    """
    from npft.processes import join

    with join() as processes:
        try:
            yield processes.decided(configured), processes
        except BaseException:
            if not processes.speaks():
                sys.exit(1)
            raise
