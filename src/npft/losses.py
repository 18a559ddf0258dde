"""Cross-entropy and divergence of next-token predictions, shared by tuning and evaluation."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def sequence_losses(logits: Tensor, tokens: Tensor) -> Tensor:
    """Mean next-token cross-entropy of each sequence, ``(batch,)``, in nats per token.

    Args:
        logits: ``(batch, context, vocabulary)``.
        tokens: ``(batch, context)``.
    """
    predicted = logits[:, :-1].float()
    each = F.cross_entropy(predicted.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
    return each.view(tokens.shape[0], -1).mean(dim=1)


def divergence(student: Tensor, original: Tensor) -> Tensor:
    """Mean KL(original || student) over all positions, from logits ``(..., vocabulary)``."""
    q = F.log_softmax(student.float().flatten(0, -2), dim=-1)
    p = F.log_softmax(original.float().flatten(0, -2), dim=-1)
    return F.kl_div(q, p, log_target=True, reduction="batchmean")
