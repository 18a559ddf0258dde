"""The numbers of a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Row:
    """One number of a run.

    Attributes:
        tokens: how many tokens were predicted, in windows of ``context``.
        stderr: the standard error of ``value``, where it is known.
        questions: how many were answered, where ``dataset`` is a task of lm-evaluation-harness;
            such a row has no tokens.
        variant: of the quantizer's setting, see :class:`npft.artifacts.QuantizedModel`.
    """

    model: str
    quantizer: str
    bits: int
    group_size: int
    avg_bits: float
    dataset: str
    metric: str
    value: float
    tokens: int = 0
    context: int = 0
    stderr: float | None = None
    questions: int = 0
    variant: str = ""


@dataclass(frozen=True)
class StepLoss:
    """Losses of one optimiser step, in nats per token; ``clean`` is NaN where beta is 0."""

    step: int
    noisy: float
    clean: float


@dataclass(frozen=True)
class Report:
    """Every number of a run, and what is needed to know how it came about.

    Attributes:
        seconds: wall-clock time by stage.
        unavailable: settings that a quantizer cannot do here, by label, each with the reason.
        notes: what went otherwise than asked, one sentence each.
    """

    rows: list[Row]
    losses: dict[str, list[StepLoss]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    unavailable: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
