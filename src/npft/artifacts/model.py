"""A language model, its linear layers, and the positions selected in them."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from npft.errors import NpftError
from npft.streaming import Stream

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class LinearLayer:
    """One linear layer inside a decoder block.

    ``transposed`` marks GPT-2's Conv1D, which stores its weight as ``(in, out)``.
    """

    name: str
    module: nn.Module
    kind: Literal["attention", "mlp"]
    transposed: bool = False

    @property
    def weight(self) -> Tensor:
        """The weight as ``(out, in)``: a view, so writing to it changes the model.

        Raises:
            NpftError: it is sharded, and its block is not on the device.
        """
        weight: Tensor = self.module.weight.detach()  # type: ignore[union-attr,operator,assignment]
        if isinstance(weight, DTensor):
            raise NpftError(
                f"the weight of {self.name} is sharded over the processes: read it in the scope of "
                "model.reading(name), or use --memory streamed"
            )
        return weight.T if self.transposed else weight

    @property
    def shape(self) -> tuple[int, int]:
        """``(out, in)``, of the weight."""
        stored: torch.Size = self.module.weight.shape  # type: ignore[union-attr,operator,assignment]
        rows, columns = reversed(stored) if self.transposed else stored
        return rows, columns

    @property
    def in_features(self) -> int:
        return self.shape[1]

    @property
    def out_features(self) -> int:
        return self.shape[0]


@dataclass(frozen=True)
class LanguageModel:
    """A causal language model, its tokenizer, and its linear layers by name, in order.

    Where there is a ``stream``, the layers' weights are in host memory, or sharded over several
    processes, and come to the device block by block when the network runs.
    """

    network: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    layers: Mapping[str, LinearLayer]
    source: str = ""
    stream: Stream | None = None

    @property
    def device(self) -> torch.device:
        """Where the network computes."""
        if self.stream is not None:
            return self.stream.device
        return next(self.network.parameters()).device

    @property
    def home(self) -> torch.device:
        """Where what is kept of each of the layers' weights should rest, as they mostly do."""
        return self.device if self.stream is None else torch.device("cpu")

    @contextmanager
    def reading(self, name: str) -> Iterator[None]:
        """Within this scope the weight of a layer can be read, on the device or at home.

        Of a sharded model all processes read the same layers in the same order.
        """
        if self.stream is None:
            yield
            return
        with self.stream.reading(self.stream.index_of(name)):
            yield

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every parameter and saved buffer by name, whole."""
        for name, tensor in self.network.state_dict(keep_vars=True).items():
            yield name, tensor if self.stream is None else self.stream.whole(tensor)

    @property
    def vocabulary(self) -> int:
        """Rows of the input embedding: token ids must be below this."""
        return int(self.network.get_input_embeddings().weight.shape[0])  # type: ignore[operator,union-attr,index]

    def copy(self) -> LanguageModel:
        """An independent copy: changing its weights leaves this one as it is."""
        from npft.models import streamed, wrap

        if self.stream is None:
            return wrap(copy.deepcopy(self.network), self.tokenizer, self.source)
        with self.stream.detached():
            network = copy.deepcopy(self.network)
        return streamed(wrap(network, self.tokenizer, self.source), self.device)


@dataclass(frozen=True)
class Outliers:
    """Selected positions of one matrix ``shape = (out, in)``.

    ``positions`` are sorted, flat, row-major ``(k,)`` int64 indices; ``None`` stands for every
    position, so that gamma = 1 costs no index.
    """

    shape: tuple[int, int]
    positions: Tensor | None

    def __len__(self) -> int:
        if self.positions is None:
            return self.shape[0] * self.shape[1]
        return self.positions.numel()

    def indices(self, device: torch.device | str | None = None) -> Tensor:
        """The positions as a tensor ``(k,)``, made on the spot where they are all of them."""
        if self.positions is None:
            return torch.arange(len(self), device=device)
        return self.positions.to(device) if device is not None else self.positions

    def on(self, device: torch.device) -> Outliers:
        """The same with its positions on another device."""
        return self if self.positions is None else replace(self, positions=self.indices(device))

    def take(self, weight: Tensor) -> Tensor:
        """A copy ``(k,)`` of the weights at the positions."""
        if self.positions is None:
            return weight.reshape(-1).clone()
        return torch.take(weight, self.positions)

    def put_(self, weight: Tensor, values: Tensor) -> None:
        """Write ``values (k,)`` at the positions of ``weight``, in place."""
        if self.positions is None:
            weight.copy_(values.view(self.shape))
        else:
            weight.put_(self.positions, values)
