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
    """Losses of one optimiser step, in nats per token; None for a term that it did not take.

    Attributes:
        skipped: why the step was left out, if it was: a loss or a gradient that is not finite.
    """

    step: int
    noisy: float | None
    clean: float | None
    skipped: str | None = None


@dataclass(frozen=True)
class Channel:
    """The most sensitive weights of one input channel, a column of ``(out, in)`` (Figure 3).

    Attributes:
        layer: its name.
        input: the column.
        outputs: the rows of the weights.
        before: their sensitivities in the original.
        after: in the tuned model.
    """

    layer: str
    input: int
    outputs: list[int]
    before: list[float]
    after: list[float]


@dataclass(frozen=True)
class Sensitivity:
    """The most sensitive weights of the original, before and after tuning.

    Attributes:
        share: of each matrix's weights that are looked at.
        before: the sum of their sensitivities in the original.
        after: in the tuned model, at the same weights.
        total_before: the sum over all weights.
        total_after: likewise, in the tuned model.
        channels: those of attention and of MLP that hold the most of these weights.
        places: how many of these weights there are in each of several equal ranges of a layer's
            input channels, by layer.
    """

    share: float
    before: float
    after: float
    total_before: float
    total_after: float
    channels: list[Channel]
    places: dict[str, list[int]]


@dataclass(frozen=True)
class Report:
    """Every number of a run, and what is needed to know how it came about.

    Attributes:
        seconds: wall-clock time by stage; of one that was interrupted, since it was taken up again.
        sensitivity: what tuning does to the most sensitive weights, where both were scored.
        unavailable: settings that a quantizer cannot do here, by label, each with the reason.
        notes: what went otherwise than asked, one sentence each.
    """

    rows: list[Row]
    losses: dict[str, list[StepLoss]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    unavailable: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    sensitivity: Sensitivity | None = None
