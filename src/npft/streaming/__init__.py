"""Models larger than the device: one decoder block on it at a time, the others where they rest."""

from __future__ import annotations

from npft.streaming.blocks import find_blocks
from npft.streaming.shards import OverProcesses
from npft.streaming.stream import Stream

__all__ = ["OverProcesses", "Stream", "find_blocks"]
