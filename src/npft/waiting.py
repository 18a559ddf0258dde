"""The host does not wait for the device."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def refusing_to_wait() -> Iterator[None]:
    """A scope in which torch raises RuntimeError where the host would wait for the device.

    It also finds what would break off a recording of CUDA graphs, before there is one: that would
    leave CUDA and the allocator in disorder.
    """
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns that it does not see all
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)
