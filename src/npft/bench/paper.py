"""What the paper reports of latency, for comparison: its Table 3, measured on an RTX 4090."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Reported:
    """Seconds and peak gigabytes for generating 128 tokens with 4-bit LLaMA-2-7B."""

    method: str
    seconds: float
    gigabytes: float
    ours: str
    """The variant of ours that is its counterpart."""


TABLE_3 = (
    Reported("SqueezeLLM", 4.80, 4.46, "k-means 4-bit"),
    Reported("SqueezeLLM with 0.5% outliers", 5.01, 4.74, "k-means 4-bit + 0.50% outliers"),
    Reported("SqueezeLLM + NPFT", 4.80, 4.46, "k-means 4-bit"),
)

NOTE = (
    "The paper's numbers are from an RTX 4090 with SqueezeLLM's kernels; ratios compare, seconds "
    "do not. Its appendix also gives latency by length for OPT-1.3B, without a public table of "
    "the numbers: ours stand alone."
)
