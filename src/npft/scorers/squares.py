"""Squared gradients of each sequence, caught from the linear layers during backward passes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from npft.artifacts import LinearLayer
from npft.errors import NpftError

AT_ONCE = 2**30
"""Bytes of sequences' own gradients of one matrix at a time; at least one sequence's."""


class Squares:
    r"""Sums over sequences b of :math:`(\partial L_b / \partial w_{ij})^2`, per layer, in float32.

    For a linear layer a sequence's gradient is ``grad_output[b].T @ input[b]``, so that no
    backward pass per sequence is needed: one batched product makes those of many, which are then
    squared and added, on a GPU in one reduction.
    """

    def __init__(self, layers: Iterable[LinearLayer], device: torch.device) -> None:
        self.shape = torch.Size()
        """``(batch, context)`` of the batch at work."""
        self._layers = list(layers)
        self._sums = {layer.name: torch.zeros(layer.shape, device=device) for layer in self._layers}

    def pop(self, name: str) -> Tensor:
        """The sums ``(out, in)`` of one layer, which are given away."""
        return self._sums.pop(name)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Within this scope, backward passes through the layers add to the sums."""
        with ExitStack() as stack:
            for layer in self._layers:
                handle = layer.module.register_forward_hook(self._watch(layer.name))
                stack.callback(handle.remove)
            yield

    def _watch(self, name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if output.requires_grad:
                x = inputs[0].detach()
                output.register_hook(lambda grad: self._add(name, x, grad))

        return hook

    def _add(self, name: str, inputs: Tensor, grad: Tensor) -> None:
        total = self._sums[name]
        x, g = (_sequences(both, self.shape, name) for both in (inputs, grad))
        step = max(1, AT_ONCE // (total.numel() * x.element_size()))
        for start in range(0, len(x), step):
            few = slice(start, start + step)
            gradients = torch.bmm(g[few].transpose(1, 2), x[few])
            if len(gradients) > 1 and gradients.is_cuda:
                norms = torch.linalg.vector_norm(gradients, dim=0, dtype=torch.float32)
                total.addcmul_(norms, norms)
                continue
            # On a CPU norms over the first dimension take 200 times as long as this.
            for gradient in gradients:
                in_float = gradient.float()
                total.addcmul_(in_float, in_float)


def _sequences(activations: Tensor, shape: torch.Size, name: str) -> Tensor:
    """``(batch, context, features)``, also where a model flattens the first two (OPT's MLP)."""
    if activations.shape[:-1].numel() == shape.numel():
        return activations.reshape(*shape, -1)
    if shape[0] == 1:
        return activations.reshape(1, -1, activations.shape[-1])
    raise NpftError(f"layer {name} mixes the sequences of a batch: score one sequence at a time")
