"""Tiny random models of every supported architecture, and a byte-level tokenizer for them."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers import models as token_models
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from npft import models
from npft.artifacts import LanguageModel

VOCABULARY = 256

_LLAMA_LIKE: dict[str, Any] = dict(
    vocab_size=VOCABULARY,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=128,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)

CONFIGS: dict[str, dict[str, Any]] = {
    "Llama": {**_LLAMA_LIKE, "tie_word_embeddings": True},
    "Mistral": {**_LLAMA_LIKE, "sliding_window": None},
    "Qwen2": _LLAMA_LIKE,
    "Gemma": {**_LLAMA_LIKE, "head_dim": 8},
    "Phi": _LLAMA_LIKE,
    "GPTNeoX": {k: v for k, v in _LLAMA_LIKE.items() if k != "num_key_value_heads"},
    "OPT": dict(
        vocab_size=VOCABULARY,
        hidden_size=32,
        ffn_dim=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
        word_embed_proj_dim=32,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    ),
    "GPT2": dict(
        vocab_size=VOCABULARY,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=128,
        bos_token_id=1,
        eos_token_id=2,
    ),
}


def tiny_network(architecture: str = "Llama", seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A random causal LM with two blocks of width 32, in float32 on the CPU.

    Its weights are larger than a default initialisation's, so that its predictions are far from
    uniform and quantization hurts.
    """
    config_class = getattr(transformers, f"{architecture}Config")
    config = config_class(**{**CONFIGS[architecture], **changes})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for parameter in network.parameters():
                if parameter.dim() == 2:
                    parameter.mul_(4.0)
    return network


@functools.cache
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: index for index, character in enumerate(alphabet)}
    tokenizer = Tokenizer(token_models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def tiny_model(architecture: str = "Llama", seed: int = 0, **changes: Any) -> LanguageModel:
    """A :class:`LanguageModel` around :func:`tiny_network`."""
    return models.wrap(tiny_network(architecture, seed, **changes), tiny_tokenizer())


def save_tiny(folder: Path, architecture: str = "Llama", seed: int = 0, **changes: Any) -> Path:
    """Write a tiny model as a Hugging Face folder."""
    models.save(tiny_model(architecture, seed, **changes), folder)
    return folder


def tiny_tokens(windows: int = 4, context: int = 16, seed: int = 0) -> torch.Tensor:
    """Random token ids ``(windows, context)``."""
    random = torch.Generator().manual_seed(seed)
    return torch.randint(VOCABULARY, (windows, context), generator=random)
