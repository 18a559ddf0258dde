"""A quantized model that runs on its packed weights."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from npft.artifacts import LanguageModel, QuantizedModel
from npft.errors import NpftError
from npft.packed.linear import PackedLinear, share
from npft.packed.tensors import from_weight

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class PackedModel:
    """A network whose quantized layers are :class:`PackedLinear`, and its tokenizer."""

    network: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    def tokens(self, prompt: str, most: int, **options: Any) -> Tensor:
        """Up to ``most`` new token ids ``(n,)`` after ``prompt``.

        Args:
            prompt: text.
            most: new tokens at most.
            options: for ``transformers``' generate, such as ``do_sample=True``; greedy by default.

        Raises:
            NpftError: the model has no tokenizer, or ``most`` is not positive.
        """
        if most < 1:
            raise NpftError(f"{most} tokens were asked for: ask for one at least")
        ids = self.encode(prompt).to(self.device)[None]
        chosen = {"do_sample": False, "max_new_tokens": most, **options}
        with torch.inference_mode():
            whole: Tensor = self.network.generate(  # type: ignore[operator,assignment]
                input_ids=ids, attention_mask=torch.ones_like(ids), **chosen
            )
        return whole[0, ids.shape[1] :]

    def generate(self, prompt: str, most: int = 128, **options: Any) -> str:
        """The text that follows ``prompt``; see :meth:`tokens`."""
        return self.decode(self.tokens(prompt, most, **options))

    def encode(self, prompt: str) -> Tensor:
        """Token ids ``(n,)`` of a text.

        Raises:
            NpftError: the model has no tokenizer, or the text no tokens.
        """
        ids: Tensor = self._tokenizer()(prompt, return_tensors="pt")["input_ids"][0]
        if len(ids) == 0:
            raise NpftError("the prompt has no tokens: give some text")
        return ids

    def decode(self, ids: Tensor) -> str:
        """The text of token ids ``(n,)``."""
        return str(self._tokenizer().decode(ids, skip_special_tokens=True))

    def stops(self) -> frozenset[int]:
        """Token ids that end a text."""
        ends: Any = getattr(self.network.generation_config, "eos_token_id", None)
        return frozenset([ends] if isinstance(ends, int) else ends or ())

    def _tokenizer(self) -> Any:
        if self.tokenizer is None:
            raise NpftError("the model has no tokenizer: load one beside it")
        return self.tokenizer


def pack_model(quantized: QuantizedModel) -> PackedModel:
    """The same model with packed layers; layers of one input are computed together.

    The quantized model is left as it is and shares what is not quantized with no other copy.

    Raises:
        NpftError: some layer has no packed layout.
    """
    model = quantized.model
    packed = {name: _packed(quantized, name) for name in quantized.weights}
    stand_ins: dict[str, nn.Module] = dict(packed)
    for group in shared_inputs(model):
        names = [name for name in group if name in packed]
        stand_ins.update(zip(names, share([packed[name] for name in names]), strict=True))
    memo: dict[int, Any] = {
        id(model.layers[name].module): stand_in for name, stand_in in stand_ins.items()
    }
    network = copy.deepcopy(model.network, memo)
    return PackedModel(network, model.tokenizer)


def shared_inputs(model: LanguageModel) -> list[list[str]]:
    """Names of layers that multiply the very same tensor, seen by running two tokens."""
    seen: list[tuple[str, Tensor]] = []

    def note(name: str) -> Any:
        return lambda _, inputs: seen.append((name, inputs[0]))

    with ExitStack() as hooks, torch.inference_mode():
        for name, layer in model.layers.items():
            hooks.callback(layer.module.register_forward_pre_hook(note(name)).remove)
        model.network(torch.zeros(1, 2, dtype=torch.long, device=model.device), use_cache=False)
    groups: dict[int, list[str]] = {}
    for name, x in seen:
        groups.setdefault(id(x), []).append(name)
    return [names for names in groups.values() if len(names) > 1]


def packed_layers(network: nn.Module) -> Iterator[PackedLinear]:
    """Every packed matrix of a network, each once."""
    return (module for module in network.modules() if isinstance(module, PackedLinear))


def _packed(quantized: QuantizedModel, name: str) -> PackedLinear:
    layer = quantized.model.layers[name]
    device = layer.weight.device
    try:
        tensors = from_weight(quantized.weights[name]).map(lambda tensor: tensor.to(device))
    except NpftError as error:
        raise NpftError(f"layer {name}: {error}") from error
    bias: Any = getattr(layer.module, "bias", None)
    return PackedLinear(tensors, None if bias is None else bias.detach().clone())
