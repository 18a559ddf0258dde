"""GPTQ as its paper's equations have it, in float64: no blocks, no Cholesky factor, no laziness."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Answer:
    """Codes ``(out, in)``, and the quantized weights ``(out, in)``."""

    codes: Tensor
    weight: Tensor


def hessian(inputs: Tensor) -> Tensor:
    """``2 X^T X`` of inputs ``(tokens, in)``; GPTQ's answer does not depend on its scale."""
    rows = inputs.double().reshape(-1, inputs.shape[-1])
    return 2 * rows.T @ rows


def proxy_loss(weight: Tensor, quantized: Tensor, hessian: Tensor) -> float:
    """``tr(E H E^T)``: the squared error of the layer's output on the calibration."""
    error = weight.double() - quantized.double()
    return float((error @ hessian * error).sum())


def gptq(
    weight: Tensor,
    hessian: Tensor,
    bits: int,
    group_size: int = 0,
    sym: bool = True,
    desc_act: bool = False,
    damp_percent: float = 0.01,
) -> Answer:
    """Quantize input after input; each time the rest makes up for the error (eqs. 2 and 3).

    The inverse Hessian of what is left is found anew by elimination (eq. 3). The grid of a group
    is that of the weights before anything moved.
    """
    columns = weight.shape[1]
    work = weight.double().clone()
    damped = hessian + damp_percent * hessian.diagonal().mean() * torch.eye(columns).double()
    order = torch.arange(columns)
    if desc_act:
        order = hessian.diagonal().argsort(descending=True)
    inverse = torch.linalg.inv(damped)
    codes = torch.zeros_like(work)
    size = group_size or columns
    for start in range(0, columns, size):
        members = order[start : start + size]
        scale, zero = _grid(weight[:, members], bits, sym)
        for column in members.tolist():
            now = work[:, column]
            codes[:, column] = ((now / scale).round() + zero).clamp(0, 2**bits - 1)
            fixed = (codes[:, column] - zero) * scale
            pivot, row = inverse[column, column].clone(), inverse[column].clone()
            # The row is zero at inputs eliminated before, which therefore stay as they are.
            work -= torch.outer((now - fixed) / pivot, row)
            work[:, column] = fixed
            inverse -= torch.outer(row, row) / pivot
    return Answer(codes.to(torch.uint8), work)


def _grid(weight: Tensor, bits: int, sym: bool) -> tuple[Tensor, Tensor]:
    levels = 2**bits - 1
    if sym:
        scale = 2 * weight.abs().amax(dim=1) / levels
        zero = torch.full_like(scale, 2 ** (bits - 1))
    else:
        low, high = weight.amin(dim=1).clamp(max=0), weight.amax(dim=1).clamp(min=0)
        scale = (high - low) / levels
        zero = (-low / scale).round()
    return scale.half().double(), zero.double()
