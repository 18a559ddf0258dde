"""Readers that do everything wrong, to see that it is noticed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from random import Random

from fuzzing.target import Prepared, Target

from npft.errors import NpftError


def _hangs() -> None:
    time.sleep(600)


def _dies() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def _grows() -> None:
    bytearray(8 << 30)


def _grows_politely() -> None:
    try:
        bytearray(8 << 30)
    except MemoryError as error:
        raise NpftError("this file is too large for the memory here") from error


def _shows_a_traceback() -> None:
    raise KeyError("a")


def _stammers() -> None:
    raise NpftError("a sentence\nin two lines")


def _target(name: str, do: Callable[[], None]) -> Target:
    return Target(name, lambda _: Prepared(Random.random, lambda _: do(), []))


WRONG = {
    target.name: target
    for target in (
        _target("hangs", _hangs),
        _target("dies", _dies),
        _target("grows", _grows),
        _target("grows politely", _grows_politely),
        _target("shows a traceback", _shows_a_traceback),
        _target("stammers", _stammers),
    )
}
