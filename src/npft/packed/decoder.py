"""Decoding one sequence on a GPU as a CUDA graph: a static cache, and no Python between kernels.

For networks built like Llama: RMS norms, rotary embedding, SiLU-gated MLP, no sliding window.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from npft.errors import NpftError
from npft.packed import gemv, steps
from npft.packed.linear import PackedLinear, Part
from npft.packed.tensors import PackedTensors

Product = Callable[[Tensor, Tensor], None]
"""Writes the product with x ``(1, in)`` into y ``(1, out)``."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a Llama-like network."""

    layers: int
    width: int
    mlp: int
    heads: int
    kv_heads: int
    head: int
    vocabulary: int
    epsilon: float = 1e-5


@dataclass(frozen=True)
class Fused:
    """Layers of one input in one product, and where in its output each begins."""

    product: Product
    size: int
    starts: tuple[int, ...]


@dataclass(frozen=True)
class Block:
    """The parts of one decoder block."""

    norms: tuple[Tensor, Tensor]
    qkv: Fused
    o: Product
    gate_up: Fused
    down: Product


@dataclass(frozen=True)
class Weights:
    """A Llama-like network, taken apart."""

    shape: Shape
    embedding: Tensor
    blocks: Sequence[Block]
    norm: Tensor
    head: Tensor
    inverse_frequencies: Tensor
    rotary_scale: float = 1.0


class Decoder:
    """Feeds tokens one by one; each step is one replay of a CUDA graph.

    Args:
        weights: on one CUDA device, in fp16 or bf16.
        limit: tokens that the cache has room for.
    """

    def __init__(self, weights: Weights, limit: int) -> None:
        self.weights, self.limit = weights, limit
        shape, like = weights.shape, weights.embedding
        device = like.device
        self._token = torch.zeros(1, dtype=torch.int64, device=device)
        self._position = torch.zeros(1, dtype=torch.int32, device=device)
        self._tokens = torch.zeros(limit + 1, dtype=torch.int64, device=device)
        self.logits = like.new_empty(1, shape.vocabulary)
        size = (shape.layers, shape.kv_heads, limit, shape.head)
        self._caches = like.new_zeros(size), like.new_zeros(size)
        angles = torch.outer(
            torch.arange(limit, device=device).float(),
            weights.inverse_frequencies.float().to(device),
        )
        self._rotary = angles.cos() * weights.rotary_scale, angles.sin() * weights.rotary_scale
        self._buffers = _Buffers(weights)
        self._step_once = self._capture()

    def reset(self) -> None:
        """Forget all tokens."""
        self._position.zero_()

    def feed(self, token: int | Tensor) -> Tensor:
        """Logits ``(1, vocabulary)`` after one more token; overwritten by the next step."""
        self._token.fill_(token)
        self._step_once()
        return self.logits

    def generate(self, prompt: Tensor, most: int, stop: frozenset[int] = frozenset()) -> Tensor:
        """Greedily, up to ``most`` new tokens ``(n,)`` after ``prompt (n,)``, ending with one of
        ``stop`` at the latest.

        Raises:
            NpftError: prompt and new tokens do not fit into the cache.
        """
        if len(prompt) + most > self.limit:
            raise NpftError(
                f"{len(prompt)} tokens of prompt and {most} new ones do not fit into a cache of "
                f"{self.limit}: make it larger"
            )
        self.reset()
        for token in prompt.tolist():
            self.feed(token)
        start, made = len(prompt), 1
        while made < most:
            burst = min(32, most - made) if stop else most - made
            self.run(burst)
            made += burst
            if stop and stop & set(self._tokens[start : start + made].tolist()):
                break
        new = self._tokens[start : start + made]
        ends = [i for i, token in enumerate(new.tolist()) if token in stop]
        return new[: ends[0] + 1 if ends else made].clone()

    def run(self, steps_: int) -> None:
        """So many greedy steps, each fed with the token that the one before it chose."""
        for _ in range(steps_):
            self._step_once()

    def _capture(self) -> Callable[[], None]:
        """One step as a CUDA graph."""
        device, dtype = self.logits.device, self.logits.dtype
        if device.type != "cuda" or dtype not in (torch.float16, torch.bfloat16):
            raise NpftError(
                f"decoding by CUDA graphs needs a GPU and float16 or bfloat16, not {dtype} on "
                f"{device.type}: use --device cuda --dtype bfloat16"
            )
        with torch.cuda.device(device), torch.inference_mode():
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):  # compiles, and lets cuBLAS take its workspace
                self._step()
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self._step()
        self.reset()
        return graph.replay

    def _step(self) -> None:
        weights, shape, at = self.weights, self.weights.shape, self._buffers
        steps.embed(weights.embedding, self._token, at.residual)
        delta: Tensor | None = None
        head = shape.head
        for index, block in enumerate(weights.blocks):
            steps.rms_norm(at.residual, delta, block.norms[0], at.x, shape.epsilon)
            block.qkv.product(at.x, at.qkv)
            q, k, v = (
                at.qkv[0, start : start + heads * head]
                for start, heads in zip(
                    block.qkv.starts, (shape.heads, shape.kv_heads, shape.kv_heads), strict=True
                )
            )
            caches = self._caches[0][index], self._caches[1][index]
            steps.attend((q, k, v), self._rotary, caches, at.attended, self._position, head)
            block.o(at.attended, at.delta)
            steps.rms_norm(at.residual, at.delta, block.norms[1], at.x, shape.epsilon)
            block.gate_up.product(at.x, at.gate_up)
            gated, up = (at.gate_up[0, s : s + shape.mlp] for s in block.gate_up.starts)
            steps.gate(gated, up, at.mlp)
            block.down(at.mlp, at.delta)
            delta = at.delta
        steps.rms_norm(at.residual, delta, weights.norm, at.x, shape.epsilon)
        torch.mm(at.x, weights.head.T, out=self.logits)
        torch.argmax(self.logits[0], 0, True, out=self._token)
        self._position.add_(1)
        self._tokens.index_copy_(0, self._position.long(), self._token)


class _Buffers:
    """What one step writes."""

    def __init__(self, weights: Weights) -> None:
        shape, like, first = weights.shape, weights.embedding, weights.blocks[0]
        self.residual = like.new_empty(1, shape.width)
        self.x = like.new_empty(1, shape.width)
        self.delta = like.new_empty(1, shape.width)
        self.qkv = like.new_empty(1, first.qkv.size)
        self.attended = like.new_empty(1, shape.heads * shape.head)
        self.gate_up = like.new_empty(1, first.gate_up.size)
        self.mlp = like.new_empty(1, shape.mlp)


def packed_product(weight: PackedTensors, bias: Tensor | None = None) -> Product:
    """The product with a packed matrix."""

    def product(x: Tensor, y: Tensor) -> None:
        gemv.multiply(weight, x, y, bias)

    return product


def dense_product(weight: Tensor, bias: Tensor | None = None) -> Product:
    """The product with a float matrix ``(out, in)``, by cuBLAS."""

    def product(x: Tensor, y: Tensor) -> None:
        if bias is None:
            torch.mm(x, weight.T, out=y)
        else:
            torch.addmm(bias, x, weight.T, out=y)

    return product


def take_apart(network: Any) -> Weights:
    """The parts of a transformers network, packed or not, for :class:`Decoder`.

    Raises:
        NpftError: it is not built like Llama.
    """
    config = network.config.get_text_config()
    if not knows(network):
        raise NpftError(
            f"decoding by CUDA graphs knows networks built like Llama, not {config.model_type!r}"
        )
    inner = network.model
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    shape = Shape(
        config.num_hidden_layers,
        config.hidden_size,
        config.intermediate_size,
        config.num_attention_heads,
        config.num_key_value_heads,
        head,
        config.vocab_size,
        config.rms_norm_eps,
    )
    blocks = [
        Block(
            (layer.input_layernorm.weight, layer.post_attention_layernorm.weight),
            _fused([getattr(layer.self_attn, f"{name}_proj") for name in "qkv"]),
            _product(layer.self_attn.o_proj),
            _fused([layer.mlp.gate_proj, layer.mlp.up_proj]),
            _product(layer.mlp.down_proj),
        )
        for layer in inner.layers
    ]
    return Weights(
        shape,
        inner.embed_tokens.weight,
        blocks,
        inner.norm.weight,
        network.lm_head.weight,
        inner.rotary_emb.inv_freq,
        float(inner.rotary_emb.attention_scaling),
    )


def knows(network: Any) -> bool:
    """Whether a transformers network is built like Llama, so that :func:`take_apart` can."""
    config = network.config.get_text_config()
    return config.model_type in ("llama", "mistral", "qwen2") and _plain(config)


def _plain(config: Any) -> bool:
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    window = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    return config.hidden_act == "silu" and not window and head in (32, 64, 128, 256)


def _fused(layers: list[nn.Module]) -> Fused:
    if all(isinstance(layer, Part) for layer in layers):
        whole: Any = layers[0].shared
        starts = tuple(part.start for part in whole.slices)
        return Fused(_product(whole), whole.out_features, starts)
    products = [_product(layer) for layer in layers]
    sizes: list[Any] = [layer.out_features for layer in layers]
    starts = tuple(sum(sizes[:i]) for i in range(len(sizes)))

    def product(x: Tensor, y: Tensor) -> None:
        for one, start, size in zip(products, starts, sizes, strict=True):
            one(x, y[:, start : start + size])

    return Fused(product, sum(sizes), starts)


def _product(layer: nn.Module) -> Product:
    bias: Any = layer.bias
    if isinstance(layer, PackedLinear):
        weight = layer.weight
        if weight.permutation is None and gemv.supported(weight):
            return packed_product(weight, bias)
        return _copying(layer)
    if isinstance(layer, nn.Linear):
        return dense_product(layer.weight, bias)
    raise NpftError(f"decoding by CUDA graphs does not know layers of type {type(layer).__name__}")


def _copying(layer: PackedLinear) -> Product:
    def product(x: Tensor, y: Tensor) -> None:
        y.copy_(layer.product(x))

    return product
