"""The worker quantizes the model that it was given, or says that it cannot."""

from __future__ import annotations

from typing import Any

import pytest
from tiny import CONFIGS, tiny_model, tiny_tokens
from transformers import AutoModelForCausalLM, Qwen3Config

from npft import models
from npft.errors import Unavailable
from npft_autogptq import AutoGPTQ, exchange
from npft_autogptq.old_words import translated

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
ROPES: list[tuple[str, dict[str, Any]]] = [
    ("Llama", {"rope_type": "default", "rope_theta": 500000.0}),
    ("Llama", {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}),
    ("Llama", LLAMA3),
    ("Qwen2", {"rope_type": "default", "rope_theta": 1000000.0}),
    ("GPTNeoX", {"rope_type": "default", "rope_theta": 50000.0, "partial_rotary_factor": 0.5}),
    ("Phi", {"rope_type": "default", "rope_theta": 50000.0, "partial_rotary_factor": 0.75}),
]


@pytest.mark.parametrize(("architecture", "rope"), ROPES)
def test_rope_is_read_as_it_was_meant(architecture: str, rope: dict[str, Any]) -> None:
    """The worker compares logits itself, and would refuse (as the next test shows)."""
    model = tiny_model(architecture, rope_parameters=rope)
    assert AutoGPTQ().quantize(model, [tiny_tokens(2, 64)]).notes == ()


@pytest.mark.parametrize(("architecture", "rope"), ROPES)
def test_without_translation_every_one_is_refused(
    architecture: str, rope: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "translated", lambda config: config)
    model = tiny_model(architecture, rope_parameters=rope)
    with pytest.raises(Unavailable, match="reads this model as another one, whose logits are"):
        AutoGPTQ().quantize(model, [tiny_tokens(2, 64)])


def test_translation() -> None:
    config = {
        "dtype": "float32",
        "hidden_size": 32,
        "transformers_version": "5.0.0",
        "rope_parameters": LLAMA3 | {"partial_rotary_factor": 0.5},
    }
    kept = {k: v for k, v in LLAMA3.items() if k != "rope_theta"}
    assert translated(config) == {
        "torch_dtype": "float32",
        "hidden_size": 32,
        "rope_theta": 500000.0,
        "rotary_emb_base": 500000.0,
        "partial_rotary_factor": 0.5,
        "rotary_pct": 0.5,
        "rope_scaling": kept,
    }
    assert "rope_parameters" in config


def test_a_model_that_the_old_transformers_lacks_is_refused_before_any_work() -> None:
    network = AutoModelForCausalLM.from_config(Qwen3Config(**CONFIGS["Qwen2"]))
    model = models.wrap(network, None)
    with pytest.raises(Unavailable, match="cannot quantize a 'qwen3' model"):
        AutoGPTQ().check(model)
