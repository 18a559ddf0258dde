"""A LoRA layer's forward and backward pass in as few passes over memory as there can be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def forward_of(wrapper: Any) -> Callable[[Tensor], Tensor]:
    """What peft's LoRA layer computes, ``base(x) + s B A dropout(x)``, for its one adapter.

    peft converts the whole input to the adapter's float32 and walks over the output four times.
    Here the product is added to the base layer's output as it is made, in the input's dtype; the
    adapter itself and its optimizer stay in float32.
    """
    a, b = wrapper.lora_A["default"].weight, wrapper.lora_B["default"].weight
    scaling, dropout = wrapper.scaling["default"], wrapper.lora_dropout["default"]

    def forward(x: Tensor) -> Tensor:
        result: Tensor = wrapper.base_layer(x)
        if wrapper.disable_adapters:
            return result
        added: Tensor = _LowRank.apply(result, dropout(x), a, b, scaling)  # type: ignore[no-untyped-call]
        return added

    return forward


class _LowRank(torch.autograd.Function):
    r"""``result + s x A^T B^T`` for rows x of the input."""

    @staticmethod
    def forward(
        ctx: Any, result: Tensor, x: Tensor, a: Tensor, b: Tensor, scaling: float
    ) -> Tensor:
        a, b = a.to(x.dtype), b.to(x.dtype)
        inner = x.flatten(0, -2) @ a.T
        ctx.save_for_backward(x, inner, a, b)
        ctx.scaling = scaling
        added = torch.addmm(result.flatten(0, -2), inner, b.T, alpha=scaling)
        return added.view_as(result)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, inner, a, b = ctx.saved_tensors
        rows = grad.flatten(0, -2)
        grad_inner = (rows @ b).mul_(ctx.scaling)
        grad_x = (grad_inner @ a).view_as(x) if ctx.needs_input_grad[1] else None
        grad_a = grad_inner.T @ x.flatten(0, -2)
        grad_b = (rows.T @ inner).mul_(ctx.scaling)
        return grad, grad_x, grad_a, grad_b, None
