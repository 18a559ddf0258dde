"""Small random models, and text for them, on every device that there is."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from npft.artifacts import LanguageModel
from npft.seeding import generator

VOCABULARY = 64


def devices() -> list[str]:
    """Where the checks run."""
    return ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def small_models(
    width: int = 32, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> Iterator[LanguageModel]:
    """Random two-block models, with ``nn.Linear`` (Llama) and ``Conv1D`` (GPT-2).

    Args:
        width: of the hidden states; even.
        device: where they are.
        dtype: of their weights.
    """
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import (
        AutoModelForCausalLM,
        GPT2Config,
        LlamaConfig,
        PreTrainedTokenizerFast,
    )

    from npft.models import wrap

    llama = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
    )
    gpt2 = GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=width,
        n_layer=2,
        n_head=2,
        n_positions=32,
        bos_token_id=0,
        eos_token_id=0,
    )
    words = WordLevel({f"w{index}": index for index in range(VOCABULARY)}, unk_token="w0")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words))
    for config in (llama, gpt2):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = AutoModelForCausalLM.from_config(config, dtype=dtype)
        yield wrap(network.to(device), tokenizer)


def tokens(device: str = "cpu") -> Tensor:
    """Four windows of 16 tokens ``(4, 16)``."""
    ids = torch.randint(VOCABULARY, (4, 16), generator=generator(0, "tokens"))
    return ids.to(device)
