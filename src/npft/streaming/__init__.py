"""Models larger than the device: one decoder block on it at a time, the others in host memory."""

from __future__ import annotations

from npft.streaming.blocks import find_blocks
from npft.streaming.stream import Stream

__all__ = ["Stream", "find_blocks"]
