"""Predict the text."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from npft.contracts import Objective
from npft.losses import sequence_losses


class CrossEntropy(Objective):
    """Mean next-token cross-entropy on the calibration text, in nats per token (eq. 7's L)."""

    name: ClassVar[str] = "cross-entropy"

    def loss(self, student: Any, tokens: Tensor, original: Any | None) -> Tensor:
        return sequence_losses(student.logits, tokens).mean()
