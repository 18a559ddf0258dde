"""GPTQ in float64 as its paper states it (arXiv 2210.17323, eq. 1 and 2), without its shortcuts.

Inputs are rounded one after the other. Each time, the inputs that are left make up for the error
as the exact inverse of what is left of the Hessian says: no Cholesky factor, no blocks.
"""

from __future__ import annotations

import torch
from torch import Tensor


def damped_hessian(inputs: Tensor, damp_percent: float) -> Tensor:
    """``X^T X`` of ``inputs (tokens, in)``, with a share of its mean diagonal added to it."""
    gram = inputs.double().T @ inputs.double()
    return gram + damp_percent * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)


def gptq(
    weight: Tensor,
    inputs: Tensor,
    bits: int,
    group_size: int = 0,
    sym: bool = False,
    desc_act: bool = False,
    damp_percent: float = 0.05,
) -> Tensor:
    """The dequantized ``(out, in)`` weight."""
    hessian = damped_hessian(inputs, damp_percent)
    order = order_of_inputs(hessian.diagonal(), group_size, desc_act)
    left, hessian = weight.double()[:, order], hessian[order][:, order]
    answer = torch.zeros_like(left)
    scale = zero = torch.empty(0)
    for j in range(left.shape[1]):
        if j % (group_size or left.shape[1]) == 0:
            scale, zero = grid(left[:, j : j + (group_size or left.shape[1])], bits, sym)
        code = (torch.round(left[:, j] / scale) + zero).clamp(0, 2**bits - 1)
        answer[:, j] = (code - zero) * scale
        inverse = torch.linalg.inv(hessian[j:, j:])
        error = (left[:, j] - answer[:, j]) / inverse[0, 0]
        left[:, j:] -= error[:, None] * inverse[0]
    return answer[:, order.argsort()]


def order_of_inputs(energy: Tensor, group_size: int, desc_act: bool) -> Tensor:
    """Largest first with ``desc_act``; else group by group, by their largest, and inside each."""
    if desc_act:
        return energy.argsort(descending=True)
    if not group_size:
        return torch.arange(len(energy))
    inside = energy.view(-1, group_size).argsort(descending=True)
    inside += torch.arange(0, len(energy), group_size)[:, None]
    return inside[energy[inside[:, 0]].argsort(descending=True)].flatten()


def grid(group: Tensor, bits: int, sym: bool) -> tuple[Tensor, Tensor]:
    """Scale and zero of each row of a group ``(out, inputs)``."""
    low, high = group.amin(1).clamp(max=0), group.amax(1).clamp(min=0)
    if sym:
        return 2 * torch.maximum(high, -low) / (2**bits - 1), torch.full_like(low, 2 ** (bits - 1))
    scale = (high - low) / (2**bits - 1)
    return scale, torch.round(-low / scale)


def layer_loss(weight: Tensor, quantized: Tensor, inputs: Tensor) -> float:
    """Squared error of the layer's outputs, which GPTQ makes small."""
    return float((inputs.double() @ (weight.double() - quantized.double()).T).square().sum())
