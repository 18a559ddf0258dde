"""Numbers that no test sees twice, for plugins that must not be repeatable."""

from __future__ import annotations

import itertools

_NUMBERS = itertools.count(1)


def fresh() -> int:
    """The next number."""
    return next(_NUMBERS)
