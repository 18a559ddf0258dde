"""The terms of distillation that need no memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from npft.losses import divergence


def softened(student: Tensor, teacher: Tensor, temperature: float = 4.0) -> Tensor:
    r"""Knowledge distillation (Hinton et al., arXiv 1503.02531).

    .. math:: T^2\, \mathrm{KL}(\mathrm{softmax}(z_t / T)\, \|\, \mathrm{softmax}(z_s / T))

    Args:
        student: logits ``(..., classes)``; the mean is over all the rest.
        teacher: logits of the same shape, taken as constants.
    """
    scaled = divergence(student / temperature, teacher.detach() / temperature)
    return temperature**2 * scaled


def attention_transfer(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """The static target that TSKD's replaces: the sum over stages of the maps' squared error.

    Args:
        student: attention maps, for each stage ``(batch, *spatial)``.
        teacher: of the same shapes, taken as constants.
    """
    pairs = zip(student, teacher, strict=True)
    return torch.stack([F.mse_loss(ours, theirs.detach()) for ours, theirs in pairs]).sum()
