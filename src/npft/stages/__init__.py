"""The stages of a run: each takes what the one before gave, and keeps its result in the folder.

A stage is a :class:`npft.ledger.Stage`: what it depends on is said here, and whether that makes
work or finds it done is not.
"""

from __future__ import annotations

from npft.stages.measuring import measure, originals
from npft.stages.quantizing import QUANTIZED, below, checkpoint, keep_float, notes, quantize
from npft.stages.scoring import Scored, load_scored, score, sensitivities
from npft.stages.training import control, kept_adapter, kept_losses, skipped, tune
from npft.stages.variants import Variant, follow_sensitive, kept_sensitivity, merge, original, tuned
from npft.stages.workspace import Workspace

__all__ = [
    "QUANTIZED",
    "Scored",
    "Variant",
    "Workspace",
    "below",
    "checkpoint",
    "control",
    "follow_sensitive",
    "keep_float",
    "kept_adapter",
    "kept_losses",
    "kept_sensitivity",
    "load_scored",
    "measure",
    "merge",
    "notes",
    "original",
    "originals",
    "quantize",
    "score",
    "sensitivities",
    "skipped",
    "tune",
    "tuned",
]
