"""What every refusal of bad input has in common."""

from __future__ import annotations

import ctypes
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


CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 1, 2
CAPABILITY_VERSION = 0x20080522  # linux/capability.h


@contextmanager
def unprivileged() -> Iterator[None]:
    """Root is bound by the permissions of files, as their owner, where the tests run as root."""
    if os.geteuid() != 0:
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0)  # 0: this thread
    before = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; then their upper halves
    assert libc.capget(header, before) == 0, os.strerror(ctypes.get_errno())
    bound = (ctypes.c_uint32 * 6)(*before)
    bound[0] &= ~(1 << CAP_DAC_OVERRIDE | 1 << CAP_DAC_READ_SEARCH)
    assert libc.capset(header, bound) == 0, os.strerror(ctypes.get_errno())
    try:
        yield
    finally:
        assert libc.capset(header, before) == 0, os.strerror(ctypes.get_errno())
