"""Randomness without global state: every stream is derived from one seed and a purpose."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def derive_seed(seed: int, purpose: str) -> int:
    """An independent 63-bit seed for ``purpose``, so that streams never share numbers."""
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def generator(seed: int, purpose: str, device: torch.device | str = "cpu") -> torch.Generator:
    """A new generator on ``device`` for one purpose of a run."""
    return torch.Generator(device=device).manual_seed(derive_seed(seed, purpose))


@contextmanager
def isolated_rng(seed: int, purpose: str) -> Iterator[None]:
    """Run code that insists on torch's global generators, and leave those as they were.

    Adapter initialisation and dropout draw from the global state; this scope seeds it from
    ``seed`` and restores the caller's state on exit.
    """
    with forked(derive_seed(seed, purpose)):
        yield


@contextmanager
def forked(seed: int) -> Iterator[None]:
    """A scope in which torch's global generators start from ``seed``; then they are put back."""
    cuda = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=cuda):
        # torch.manual_seed would also reach devices that this scope does not restore.
        torch.default_generator.manual_seed(seed)
        for index in cuda:
            torch.cuda.default_generators[index].manual_seed(seed)
        yield


@contextmanager
def deterministic(asked: bool) -> Iterator[None]:
    """A scope in which torch prefers algorithms that give the same bits each time, on a GPU too.

    On a CPU they all do. Where torch has none of that kind it takes the other and warns.
    """
    if not asked:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it at its first use
    was = torch.are_deterministic_algorithms_enabled()
    warned = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was, warn_only=warned)
