"""What the paper reports of latency, for comparison: its Table 3, measured on an RTX 4090."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Reported:
    """Seconds and peak gigabytes for generating 128 tokens with a 4-bit model."""

    model: str
    method: str
    seconds: float
    gigabytes: float
    ours: str | None = None
    """The variant of ours that is its counterpart, or None where the bench has no such model."""


LLAMA, OPT, SQUEEZE = "LLaMA-2-7B", "OPT-1.3B", "SqueezeLLM"

TABLE_3 = (
    Reported(LLAMA, SQUEEZE, 4.80, 4.46, "k-means 4-bit"),
    Reported(LLAMA, f"{SQUEEZE} with 0.5% outliers", 5.01, 4.74, "k-means 4-bit + 0.50% outliers"),
    Reported(LLAMA, f"{SQUEEZE} + NPFT", 4.80, 4.46, "k-means 4-bit"),
    Reported(OPT, SQUEEZE, 2.40, 1.08),
    Reported(OPT, f"{SQUEEZE} with 0.5% outliers", 2.62, 1.09),
    Reported(OPT, f"{SQUEEZE} + NPFT", 2.40, 1.08),
)

NOTE = (
    "The paper's numbers are from an RTX 4090 with SqueezeLLM's kernels; ratios compare, seconds "
    "do not. Its appendix also gives latency by length for OPT-1.3B, without a public table of "
    "the numbers: ours stand alone, and for networks built like Llama, which OPT is not."
)
