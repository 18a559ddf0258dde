"""What every refusal of bad input has in common."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from npft.errors import NpftError


def refusal(call: Callable[[], object], *parts: str) -> str:
    """The sentence with which ``call`` is refused: one line, with ``parts``."""
    with pytest.raises(NpftError) as caught:
        call()
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert 20 < len(sentence) < 500, sentence
    for part in parts:
        assert part in sentence
    return sentence


@contextmanager
def unprivileged() -> Iterator[None]:
    """Run as nobody where the tests run as root, whom no permission stops."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)
