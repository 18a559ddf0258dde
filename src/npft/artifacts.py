"""The few types that flow from stage to stage."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from npft import grid as grids
from npft.grid import Grid

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
        """The weight as ``(out, in)``: a view, so writing to it changes the model."""
        weight: Tensor = self.module.weight.detach()  # type: ignore[union-attr,operator,assignment]
        return weight.T if self.transposed else weight

    @property
    def in_features(self) -> int:
        return int(self.weight.shape[1])

    @property
    def out_features(self) -> int:
        return int(self.weight.shape[0])


@dataclass(frozen=True)
class LanguageModel:
    """A causal language model, its tokenizer, and its linear layers by name, in order."""

    network: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    layers: Mapping[str, LinearLayer]
    source: str = ""

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    @property
    def vocabulary(self) -> int:
        """Rows of the input embedding: token ids must be below this."""
        return int(self.network.get_input_embeddings().weight.shape[0])  # type: ignore[operator,union-attr,index]

    def copy(self) -> LanguageModel:
        """An independent copy: changing its weights leaves this one as it is."""
        from npft.models import wrap

        return wrap(copy.deepcopy(self.network), self.tokenizer, self.source)


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


class PackedWeight(ABC):
    """A quantized matrix: what is stored of it, and what it stands for."""

    layout: ClassVar[str]
    """The word that a checkpoint uses for this layout."""

    codes: Tensor
    bits: int

    @property
    def shape(self) -> tuple[int, int]:
        return (self.codes.shape[0], self.codes.shape[1])

    @abstractmethod
    def dequantize(self) -> Tensor:
        """The float32 matrix ``(out, in)`` that the codes stand for."""

    @property
    @abstractmethod
    def storage_bits(self) -> int:
        """Bits of codes and tables together, as stored."""

    @abstractmethod
    def tables(self) -> dict[str, Tensor]:
        """What is stored beside the codes, by name."""


@dataclass(frozen=True)
class UniformWeight(PackedWeight):
    """Codes on a uniform grid: ``w = (code - zero) * scale`` per group of inputs.

    Attributes:
        codes: ``(out, in)`` uint8.
        scale: ``(out, groups)`` float16.
        zero: ``(out, groups)`` uint8, an integer zero point.
    """

    layout: ClassVar[str] = "uniform"

    codes: Tensor
    scale: Tensor
    zero: Tensor
    bits: int
    group_size: int = 0

    def dequantize(self) -> Tensor:
        target = Grid(self.bits, self.group_size)
        return grids.decode(self.codes.float(), self.scale.float(), self.zero.float(), target)

    @property
    def storage_bits(self) -> int:
        return self.codes.numel() * self.bits + self.scale.numel() * (16 + self.bits)

    def tables(self) -> dict[str, Tensor]:
        return {"scale": self.scale, "zero": self.zero}


@dataclass(frozen=True)
class CodebookWeight(PackedWeight):
    """Codes into a table of values per output channel: ``w[i, j] = codebook[i, code[i, j]]``.

    Attributes:
        codes: ``(out, in)`` uint8.
        codebook: ``(out, 2**bits)`` float16, ascending.
    """

    layout: ClassVar[str] = "codebook"

    codes: Tensor
    codebook: Tensor
    bits: int

    def dequantize(self) -> Tensor:
        return torch.gather(self.codebook.float(), 1, self.codes.long())

    @property
    def storage_bits(self) -> int:
        return self.codes.numel() * self.bits + self.codebook.numel() * 16

    def tables(self) -> dict[str, Tensor]:
        return {"codebook": self.codebook}


@dataclass(frozen=True)
class QuantizedModel:
    """A quantized model that runs: its layers hold the dequantized weights.

    ``weights`` maps layer names to what is stored of them.
    """

    model: LanguageModel
    weights: Mapping[str, PackedWeight]
    quantizer: str
    bits: int
    group_size: int = 0

    @property
    def average_bits(self) -> float:
        """Stored bits per quantized weight, tables included (16-bit scales and codebooks)."""
        stored = sum(weight.storage_bits for weight in self.weights.values())
        return stored / sum(weight.codes.numel() for weight in self.weights.values())

    @property
    def label(self) -> str:
        """``NAME-BITS`` or ``NAME-BITS-gGROUP``: the checkpoint's folder name."""
        return label(self.quantizer, self.bits, self.group_size)

    def save(self, folder: Path) -> None:
        """Write the packed checkpoint; see :mod:`npft.quantizers.checkpoint` for its layout."""
        from npft.quantizers.checkpoint import save

        save(self, folder)


def label(quantizer: str, bits: int, group_size: int = 0) -> str:
    """The one spelling of a quantizer's setting: ``rtn-4`` or ``rtn-4-g64``."""
    return f"{quantizer}-{bits}" + (f"-g{group_size}" if group_size else "")


@dataclass(frozen=True)
class Row:
    """One number of a run.

    Attributes:
        tokens: how many tokens were predicted, in windows of ``context``.
        stderr: the standard error of ``value``, where it is known.
        questions: how many were answered, where ``dataset`` is a task of lm-evaluation-harness;
            such a row has no tokens.
    """

    model: str
    quantizer: str
    bits: int
    group_size: int
    avg_bits: float
    dataset: str
    metric: str
    value: float
    tokens: int = 0
    context: int = 0
    stderr: float | None = None
    questions: int = 0


@dataclass(frozen=True)
class StepLoss:
    """Losses of one optimiser step, in nats per token; ``clean`` is NaN where beta is 0."""

    step: int
    noisy: float
    clean: float


@dataclass(frozen=True)
class Report:
    """Every number of a run, and what is needed to know how it came about."""

    rows: list[Row]
    losses: dict[str, list[StepLoss]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
