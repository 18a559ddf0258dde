"""What a number depends on beside the configuration: versions, machine, fingerprints."""

from __future__ import annotations

import platform
import resource
import sys
from importlib import metadata
from typing import Any

import torch

from npft.stages import Workspace


def versions() -> dict[str, str]:
    """Of npft and of the libraries that its numbers depend on."""
    return {name: metadata.version(name) for name in ("npft", "torch", "transformers", "peft")}


def environment(work: Workspace) -> dict[str, Any]:
    """Versions, machine and fingerprints: what a number depends on beside the configuration."""
    found: dict[str, Any] = dict(work.versions)
    found["python"] = platform.python_version()
    found["device"] = str(work.model.device)
    if work.processes.started > 1:
        found["processes"] = work.processes.started
    # Linux counts kilobytes, macOS bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    found["peak_memory_gb"] = round(peak / 1e9, 2)
    if work.model.device.type == "cuda":
        found["device_name"] = torch.cuda.get_device_name(work.model.device)
        found["peak_device_memory_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)
    found["calibration_fingerprint"] = work.calibration_fingerprint
    found["model_fingerprint"] = work.model_fingerprint
    return found
