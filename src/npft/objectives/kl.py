"""Predict what the original model predicts."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from npft.contracts import Objective
from npft.losses import divergence


class KL(Objective):
    r"""Divergence from the original model's predictions, in nats per token.

    .. math:: \frac{1}{N} \sum_n \sum_v p_{nv} (\log p_{nv} - \log q_{nv})

    with p the original's and q the student's next-token distribution at position n. Unlike
    cross-entropy it is zero at the start and has nothing to gain from the text's own domain.
    """

    name: ClassVar[str] = "kl"
    needs_original: ClassVar[bool] = True
    averages_over_windows: ClassVar[bool] = True
    replayable: ClassVar[bool] = True

    def loss(self, student: Any, tokens: Tensor, original: Any | None) -> Tensor:
        assert original is not None
        return divergence(student.logits, original.logits)
