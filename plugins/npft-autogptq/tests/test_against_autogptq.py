"""The worker's walk through the blocks against AutoGPTQ's own, for architectures that it lists."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import tiny_model, tiny_tokens

from npft_autogptq import AutoGPTQ, environment, exchange

OWN = Path(__file__).with_name("own_quantize.py")


@pytest.mark.parametrize(
    "architecture", ["Llama", "Mistral", "Qwen2", "Gemma", "GPT2", "OPT", "GPTNeoX"]
)
def test_codes_are_those_of_its_own_quantize(architecture: str, tmp_path: Path) -> None:
    model = tiny_model(architecture)
    windows = list(tiny_tokens(8, 32, seed=1).split(1))
    quantizer = AutoGPTQ(bits=4, group_size=16, desc_act=True, sym=False)
    ours = quantizer.quantize(model, windows)
    exchange.write(tmp_path, model, windows, quantizer.model_dump(exclude={"environment"}))
    python = environment.interpreter(environment.location())
    subprocess.run([str(python), str(OWN), str(tmp_path), str(environment.WORKER)], check=True)
    own = load_file(tmp_path / "own.safetensors")
    assert {name.rpartition(".")[0] for name in own} == set(ours.weights)
    for name, packed in ours.weights.items():
        assert torch.equal(packed.codes, own[f"{name}.codes"]), name
        assert torch.equal(packed.scale, own[f"{name}.scale"]), name
