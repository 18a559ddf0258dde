"""Cross-entropy and divergence of next-token predictions, shared by tuning and evaluation.

Both go through the predictions a few rows at a time, forward and backward, so that float32 copies
of the whole logits are never held, only of :data:`AT_ONCE` values.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

AT_ONCE = 2**24
"""Logits in float32 at a time, 64 MiB of them."""


def sequence_losses(logits: Tensor, tokens: Tensor) -> Tensor:
    """Mean next-token cross-entropy of each sequence, ``(batch,)``, in nats per token.

    Args:
        logits: ``(batch, context, vocabulary)``.
        tokens: ``(batch, context)``.
    """
    # The last position predicts nothing; it is left out at the end, as a slice of the logits
    # would have to be copied.
    following = tokens.roll(-1, dims=1).flatten()
    each: Tensor = _CrossEntropy.apply(logits.flatten(0, 1), following)  # type: ignore[no-untyped-call]
    return each.view(tokens.shape)[:, :-1].mean(dim=1)


def divergence(student: Tensor, original: Tensor) -> Tensor:
    """Mean KL(original || student) over all positions, from logits ``(..., vocabulary)``.

    The gradient is that of the student's logits alone.
    """
    rows = student.flatten(0, -2), original.detach().flatten(0, -2)
    each: Tensor = _Divergence.apply(*rows)  # type: ignore[no-untyped-call]
    return each.mean()


class _CrossEntropy(torch.autograd.Function):
    r"""``(n,)`` of :math:`\log \sum_v e^{x_v} - x_y`; the gradient is softmax less one-hot."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        ctx.save_for_backward(logits, targets)
        losses = logits.new_empty(len(logits), dtype=torch.float32)
        for rows in _parts(logits):
            losses[rows] = F.cross_entropy(logits[rows].float(), targets[rows], reduction="none")
        return losses

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        logits, targets = ctx.saved_tensors
        gradient = torch.empty_like(logits)
        for rows in _parts(logits):
            part = F.softmax(logits[rows].float(), dim=1)
            part.scatter_add_(1, targets[rows, None], part.new_full((len(part), 1), -1.0))
            gradient[rows] = part.mul_(grad[rows, None])
        return gradient, None


class _Divergence(torch.autograd.Function):
    r"""``(n,)`` of :math:`\sum_v p_v (\log p_v - \log q_v)`; the gradient is q less p."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, original: Tensor) -> Tensor:
        ctx.save_for_backward(student, original)
        losses = student.new_empty(len(student), dtype=torch.float32)
        for rows in _parts(student):
            q = F.log_softmax(student[rows].float(), dim=1)
            p = F.log_softmax(original[rows].float(), dim=1)
            losses[rows] = F.kl_div(q, p, log_target=True, reduction="none").sum(dim=1)
        return losses

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        student, original = ctx.saved_tensors
        gradient = torch.empty_like(student)
        for rows in _parts(student):
            part = F.softmax(student[rows].float(), dim=1)
            part.sub_(F.softmax(original[rows].float(), dim=1))
            gradient[rows] = part.mul_(grad[rows, None])
        return gradient, None


def _parts(logits: Tensor) -> Iterator[slice]:
    """Slices of the rows of ``(n, vocabulary)``, each of at most :data:`AT_ONCE` values."""
    step = max(1, AT_ONCE // logits.shape[1])
    for start in range(0, len(logits), step):
        yield slice(start, start + step)
