"""What is fuzzed: a kind of file, how it is damaged, and what reads it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any


@dataclass(frozen=True)
class Prepared:
    """Damaged inputs, and the reader that must take each or refuse it with an NpftError.

    Attributes:
        damage: makes an input.
        valid: inputs that the reader takes.
    """

    damage: Callable[[Random], Any]
    read: Callable[[Any], object]
    valid: Sequence[Any]


@dataclass(frozen=True)
class Target:
    """One kind of file.

    Attributes:
        prepare: makes valid files below an empty folder.
        short: how many inputs the tests try.
    """

    name: str
    prepare: Callable[[Path], Prepared]
    short: int = 200


def empty(folder: Path) -> Path:
    """The folder, made anew."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
