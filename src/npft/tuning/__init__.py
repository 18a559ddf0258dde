"""Noise perturbation fine-tuning: an adapter learns while the base weights are shaken (eq. 7)."""

from __future__ import annotations

from npft.tuning.settings import Tuning
from npft.tuning.state import Checkpoint, State
from npft.tuning.tune import Rescore, control, replayable, tune

__all__ = ["Checkpoint", "Rescore", "State", "Tuning", "control", "replayable", "tune"]
