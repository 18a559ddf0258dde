"""Published settings by name: the values that a TOML file in this folder gives a run."""

from __future__ import annotations

import difflib
import tomllib
from importlib import resources
from typing import Any

from npft.errors import NpftError, abridged

DEFAULT = "default"
"""The recipe of no file: the defaults of the configuration itself."""


def names() -> list[str]:
    """Every recipe, sorted."""
    files = [file.name for file in resources.files(__name__).iterdir()]
    return sorted([DEFAULT, *(name[:-5] for name in files if name.endswith(".toml"))])


def read(name: str) -> dict[str, Any]:
    """The values of a recipe, which stand in for the defaults of a configuration.

    Raises:
        NpftError: there is none of that name; the message lists what exists and the nearest match.
    """
    known = names()
    if name not in known:
        close = difflib.get_close_matches(str(name), known, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise NpftError(
            f"there is no recipe {abridged(repr(name))}: {hint}there are {', '.join(known)}"
        )
    if name == DEFAULT:
        return {}
    file = resources.files(__name__) / f"{name}.toml"
    return tomllib.loads(file.read_text(encoding="utf-8"))
