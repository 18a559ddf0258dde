"""Fisher sensitivity: squared gradients of each sequence, summed (eq. 3)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from npft.contracts import Scorer
from npft.losses import sequence_losses
from npft.precision import tensor_cores
from npft.scorers.blockwise import Blockwise
from npft.scorers.squares import Squares

if TYPE_CHECKING:
    from npft.artifacts import LanguageModel


class Fisher(Scorer):
    r"""Diagonal of the empirical Fisher matrix, as in SqueezeLLM and eq. 3 of NPFT.

    .. math:: F_{ij} = \sum_b \left(\frac{\partial L_b}{\partial w_{ij}}\right)^2

    where :math:`L_b` is the mean cross-entropy of sequence b in nats per token. Each sequence's
    own gradient is squared, also when several share a batch.
    """

    name: ClassVar[str] = "fisher"
    sums_over_windows: ClassVar[bool] = True

    def score(
        self, model: LanguageModel, batches: Iterable[Tensor]
    ) -> Iterator[tuple[str, Tensor]]:
        if model.stream is not None:
            with tensor_cores():
                yield from Blockwise(model, batches).scores()
            return
        squares = Squares(model.layers.values(), model.device)
        with (
            squares.watching(),
            _graph_from_embedding(model) as embedded,
            tensor_cores(),
            torch.enable_grad(),
        ):
            for tokens in batches:
                squares.shape = tokens.shape
                output = model.network(input_ids=tokens, use_cache=False)
                loss = sequence_losses(output.logits, tokens).sum()
                del output
                # Back to the embeddings only: an adapter's own gradients are not touched.
                torch.autograd.grad(loss, embedded.pop())
        for name in model.layers:
            yield name, squares.pop(name)


@contextmanager
def _graph_from_embedding(model: LanguageModel) -> Iterator[list[Tensor]]:
    """Within this scope the embedding's output starts the graph; no weight needs a gradient.

    Yields the list to which each forward pass adds that output.
    """
    embedding: nn.Module = model.network.get_input_embeddings()
    embedded: list[Tensor] = []

    def start(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[-1]

    handle = embedding.register_forward_hook(start)
    try:
        yield embedded
    finally:
        handle.remove()
