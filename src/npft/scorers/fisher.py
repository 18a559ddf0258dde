"""Fisher sensitivity: squared gradients of each sequence, summed (eq. 3)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from npft.contracts import Scorer
from npft.errors import NpftError
from npft.losses import sequence_losses
from npft.precision import tensor_cores

if TYPE_CHECKING:
    from npft.artifacts import LanguageModel


class Fisher(Scorer):
    r"""Diagonal of the empirical Fisher matrix, as in SqueezeLLM and eq. 3 of NPFT.

    .. math:: F_{ij} = \sum_b \left(\frac{\partial L_b}{\partial w_{ij}}\right)^2

    where :math:`L_b` is the mean cross-entropy of sequence b in nats per token. Each sequence's
    own gradient is squared, also when several share a batch: for a linear layer it is
    ``grad_output[b].T @ input[b]``, so that no per-sequence backward pass is needed.
    """

    name: ClassVar[str] = "fisher"

    def score(
        self, model: LanguageModel, batches: Iterable[Tensor]
    ) -> Iterator[tuple[str, Tensor]]:
        sums = {
            name: torch.zeros(layer.weight.shape, device=model.device)
            for name, layer in model.layers.items()
        }

        shape = torch.Size()  # (batch, context) of the current batch

        def add(name: str, inputs: Tensor, grad: Tensor) -> None:
            total = sums[name]
            by_sequence = (_sequences(both, shape, name) for both in (inputs, grad))
            for x, g in zip(*by_sequence, strict=True):
                gradient = (g.T @ x).float()
                total.addcmul_(gradient, gradient)

        with _gradients_of_outputs(model, add) as embedded, tensor_cores():
            for tokens in batches:
                shape = tokens.shape
                loss = sequence_losses(model.network(input_ids=tokens).logits, tokens).sum()
                # Back to the embeddings only: an adapter's own gradients are not touched.
                torch.autograd.grad(loss, embedded.pop())
        for name in model.layers:
            yield name, sums.pop(name)


def _sequences(activations: Tensor, shape: torch.Size, name: str) -> Tensor:
    """``(batch, context, features)``, also where a model flattens the first two (OPT's MLP)."""
    if activations.shape[:-1].numel() == shape.numel():
        return activations.reshape(*shape, -1)
    if shape[0] == 1:
        return activations.reshape(1, -1, activations.shape[-1])
    raise NpftError(f"layer {name} mixes the sequences of a batch: score one sequence at a time")


@contextmanager
def _gradients_of_outputs(
    model: LanguageModel, receive: Callable[[str, Tensor, Tensor], None]
) -> Iterator[list[Tensor]]:
    """Call ``receive(name, inputs, grad_output)`` for each layer during backward passes.

    The weights need no gradient of their own: the embedding's output starts the graph. Yields the
    list to which each forward pass adds that output.
    """
    embedding: nn.Module = model.network.get_input_embeddings()
    embedded: list[Tensor] = []

    def start_graph(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[-1]

    def watch(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            x = inputs[0].detach()
            output.register_hook(lambda grad: receive(name, x, grad))

        return hook

    with ExitStack() as stack, torch.enable_grad():
        handles = [embedding.register_forward_hook(start_graph)]
        handles += [
            layer.module.register_forward_hook(watch(name)) for name, layer in model.layers.items()
        ]
        for handle in handles:
            stack.callback(handle.remove)
        yield embedded
