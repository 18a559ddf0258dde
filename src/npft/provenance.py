"""What a number depends on beside the configuration: versions, machine, fingerprints, time."""

from __future__ import annotations

import platform
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from importlib import metadata
from typing import Any

import torch
from torch import Tensor

from npft.stages import Workspace


class Clock:
    """Wall-clock seconds by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def timing(self, stage: str) -> Iterator[None]:
        """Add the time spent in this scope to ``stage``."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start


def environment(work: Workspace) -> dict[str, Any]:
    """Versions, machine and fingerprints: what a number depends on beside the configuration."""
    found: dict[str, Any] = {
        name: metadata.version(name) for name in ("npft", "torch", "transformers", "peft")
    }
    found["python"] = platform.python_version()
    found["device"] = str(work.model.device)
    # Linux counts kilobytes, macOS bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    found["peak_memory_gb"] = round(peak / 1e9, 2)
    if work.model.device.type == "cuda":
        found["device_name"] = torch.cuda.get_device_name(work.model.device)
        found["peak_device_memory_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)
    found["calibration_fingerprint"] = _fingerprint(work.calibration)
    weights = torch.stack([layer.weight.double().sum() for layer in work.model.layers.values()])
    found["model_fingerprint"] = _fingerprint(weights.cpu())
    return found


def _fingerprint(values: Tensor) -> str:
    return blake2b(values.contiguous().numpy().tobytes(), digest_size=8).hexdigest()
