"""Saved folders open in AutoGPTQ itself, and predict what they predict in memory."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import tiny_model, tiny_tokens

from npft_autogptq import AutoGPTQ, environment

SCRIPT = Path(__file__).with_name("own_load.py")
# The readers of the format differ about a zero point of 0, which 2 bits make where all weights of a
# group have one sign; npft stores it for GPTQModel. A symmetric grid has none.
CASES = [
    ("Llama", AutoGPTQ(bits=4)),
    ("Llama", AutoGPTQ(bits=3, group_size=16)),
    ("Llama", AutoGPTQ(bits=4, group_size=16, sym=True, desc_act=True)),
    ("Llama", AutoGPTQ(bits=2, group_size=16, sym=True)),
    ("Llama", AutoGPTQ(bits=8)),
    ("GPT2", AutoGPTQ(bits=4)),
]


@pytest.mark.parametrize(("architecture", "quantizer"), CASES)
def test_autogptq_opens_it(architecture: str, quantizer: AutoGPTQ, tmp_path: Path) -> None:
    """On a model with the RoPE base that its transformers takes for every one.

    The head is not tied to the embedding: of a tied one AutoGPTQ's loader leaves both at 0.
    """
    changes = {"num_key_value_heads": 4} if architecture == "Llama" else {}
    model = tiny_model(architecture, tie_word_embeddings=False, **changes)
    quantized = quantizer.quantize(model, [tiny_tokens(4, 32)])
    folder, out = tmp_path / "saved", tmp_path / "logits.safetensors"
    quantized.save(folder)
    tokens = tiny_tokens(2, 32)
    save_file({"tokens": tokens}, folder / "probe.safetensors")
    python = environment.interpreter(environment.location())
    subprocess.run([str(python), str(SCRIPT), str(folder), str(out)], check=True)
    with torch.no_grad():
        here = quantized.model.network(input_ids=tokens).logits
    there = load_file(out)["logits"]
    # Its layers compute in float16 where they have no kernel.
    assert float((here - there).norm() / here.norm()) < 2e-3
