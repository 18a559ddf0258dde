"""Checkpoints of quantized models, one format per file."""

from __future__ import annotations

from npft.checkpoints.npft import MANIFEST, WEIGHTS, load, save

__all__ = ["MANIFEST", "WEIGHTS", "load", "save"]
