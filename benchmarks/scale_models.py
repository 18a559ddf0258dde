"""Random models of published shapes, and what scoring and tuning them must compute."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig

from npft import models
from npft.artifacts import LanguageModel
from npft.streaming import find_blocks

SHAPES: dict[str, dict[str, Any]] = {
    "llama-2-7b": dict(
        hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=32, vocab_size=32000,
    ),
    "llama-2-70b": dict(
        hidden_size=8192, intermediate_size=28672, num_hidden_layers=80, num_attention_heads=64,
        num_key_value_heads=8, vocab_size=32000,
    ),
    "smollm2-135m": dict(
        hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, vocab_size=49152, tie_word_embeddings=True,
    ),
}  # fmt: skip


def config(shape: str, scale: float = 1.0, **changes: Any) -> LlamaConfig:
    """A published shape, or one of about ``scale`` times its depth and width to try things on."""
    values = {**SHAPES[shape], **changes}
    if scale < 1:
        heads = max(2, round(values["num_attention_heads"] * scale) // 2 * 2)
        size = values["hidden_size"] // values["num_attention_heads"]
        values |= dict(
            hidden_size=heads * size,
            intermediate_size=max(64, round(values["intermediate_size"] * scale) // 16 * 16),
            num_hidden_layers=max(3, round(values["num_hidden_layers"] * scale)),
            num_attention_heads=heads,
            num_key_value_heads=2,
            vocab_size=max(256, round(values["vocab_size"] * scale)),
        )
    return LlamaConfig(**values, max_position_embeddings=4096)


def resident(of: LlamaConfig, device: torch.device, dtype: torch.dtype) -> LanguageModel:
    """A random model, made on the device itself."""
    with device:
        network = AutoModelForCausalLM.from_config(of, dtype=dtype)
    return models.wrap(network.to(device), None)


def streamed(
    of: LlamaConfig, device: torch.device, dtype: torch.dtype, distinct: int | None = None
) -> LanguageModel:
    """A random model in host memory, made without a second copy.

    With ``distinct``, only that many blocks have memory of their own and the others share it, so
    that a model larger than the host's memory can be timed: it is read-only then.
    """
    with torch.device("meta"):
        network = AutoModelForCausalLM.from_config(of, dtype=dtype)
    prefix, blocks = find_blocks(network)
    pinned = device.type == "cuda"
    made: dict[tuple[int, str], Tensor] = {}
    for name, old in list(network.named_parameters()):
        owner = network.get_submodule(name.rpartition(".")[0])
        inside = name.startswith(f"{prefix}.")
        key = (-1, name)
        if inside:
            index, _, rest = name.removeprefix(f"{prefix}.").partition(".")
            key = (int(index) % (distinct or len(blocks)), rest)
        if key not in made:
            value = torch.empty(old.shape, dtype=dtype, device=device)
            value = value.fill_(1.0) if old.dim() == 1 else value.normal_(std=0.02)
            if inside:
                host = torch.empty(old.shape, dtype=dtype, pin_memory=pinned)
                value = host.copy_(value)
            made[key] = value
        setattr(owner, name.rpartition(".")[2], nn.Parameter(made[key], requires_grad=False))
    network.tie_weights()
    network.model.rotary_emb = type(network.model.rotary_emb)(config=of).to(device)
    return models.streamed(models.wrap(network, None), device)


@dataclass(frozen=True)
class Work:
    """Sizes that operations follow from."""

    linear: int  # weights of all linear layers in the blocks
    head: int
    width: int
    depth: int
    tokens: int
    context: int

    def operations(self, passes: float, head: float, attention: float) -> float:
        """Multiplications and additions of so many passes of each part over all tokens.

        Attention's forward pass over causal pairs counts 1.
        """
        pairs = 2 * self.context * self.width * self.depth
        products = self.linear * passes + self.head * head
        return 2 * self.tokens * products + self.tokens * pairs * attention

    def scoring(self, recomputed: bool = False) -> float:
        """Forward, gradients of inputs, gradients of weights; and forward again."""
        return self.operations(3 + recomputed, 2, 3 + recomputed)

    def tuning(self, epochs: int, terms: int, original: bool, recomputed: bool = False) -> float:
        """For each term forward, and gradients of inputs; the adapter's own are left out."""
        one = self.operations(2 + recomputed, 2, 3 + recomputed)
        return epochs * (terms * one + (self.operations(1, 1, 1) if original else 0))


def work_of(model: LanguageModel, windows: Tensor) -> Work:
    """The sizes of a model and its windows."""
    of = model.network.config
    linear = sum(layer.out_features * layer.in_features for layer in model.layers.values())
    head = of.vocab_size * of.hidden_size
    return Work(
        linear, head, of.hidden_size, of.num_hidden_layers, windows.numel(), windows.shape[1]
    )


def matrix_rate(device: torch.device, dtype: torch.dtype, timed: Callable[..., float]) -> float:
    """Operations per second of the best of several large products."""
    size = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    a @ b
    return 2 * size**3 / min(timed(lambda: a @ b) for _ in range(10))


def bandwidths(device: torch.device, timed: Callable[..., float]) -> tuple[float, float]:
    """Bytes per second read and written by a copy on the device, and from host memory to it."""
    count = 2**30 if device.type == "cuda" else 2**24
    here = torch.ones(count, dtype=torch.uint8, device=device)
    there = torch.empty_like(here)
    host = torch.ones(count, dtype=torch.uint8, pin_memory=device.type == "cuda")
    there.copy_(host)
    own = min(timed(lambda: there.copy_(here)) for _ in range(5))
    link = min(timed(lambda: there.copy_(host, non_blocking=True)) for _ in range(5))
    return 2 * count / own, count / link
