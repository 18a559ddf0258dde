"""Predict the text."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from npft.contracts import Objective
from npft.losses import sequence_losses


class CrossEntropy(Objective):
    """Mean next-token cross-entropy on the calibration text, in nats per token (eq. 7's L).

    The text does not say which tokens count; the released code supervises only the last token of
    each window (``labels="last"``).
    """

    name: ClassVar[str] = "cross-entropy"
    averages_over_windows: ClassVar[bool] = True
    replayable: ClassVar[bool] = True

    labels: Literal["all", "last"] = Field(
        "all",
        description="which next tokens count: all, or only the last of each window, as in the "
        "released code",
    )

    def loss(self, student: Any, tokens: Tensor, original: Any | None) -> Tensor:
        logits = student.logits
        if self.labels == "last":
            logits, tokens = logits[:, -2:], tokens[:, -2:]
        return sequence_losses(logits, tokens).mean()
