"""Float32 products by tensor cores."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def tensor_cores() -> Iterator[None]:
    """In this scope a GPU may multiply float32 matrices by its tensor cores (TF32).

    TF32 rounds the factors to 10 bits of mantissa and sums in float32, which is several times
    faster and far below what gradients, sensitivities and predictions vary by: KL between two
    models moves by some 1e-6 nats. GPTQ's Hessians need more and stay outside. On a CPU nothing
    changes.
    """
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
