"""Saved folders open in GPTQModel, in transformers and by hand, and predict what they predict here.

The norms that absorbed scales must be in the folder, or no prediction would be right.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny import tiny_model, tiny_tokens
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from npft.artifacts import LanguageModel, QuantizedModel
from npft_awq import AWQ

CASES = {
    "llama": ("Llama", {"num_key_value_heads": 4}, AWQ(group_size=32)),
    "llama-channel": ("Llama", {"num_key_value_heads": 4}, AWQ(group_size=0)),
    "mistral": ("Mistral", {}, AWQ(group_size=32)),
    "qwen2": ("Qwen2", {}, AWQ(group_size=32)),
    "gemma": ("Gemma", {}, AWQ(group_size=32)),
    "phi": ("Phi", {}, AWQ(group_size=32)),
    "opt": ("OPT", {}, AWQ(group_size=32)),
    "gpt-neox": ("GPTNeoX", {}, AWQ(group_size=32)),
}

LIMITS = {
    ("gptqmodel", torch.float16): 2e-3,
    ("gptqmodel", torch.bfloat16): 2e-2,
    ("transformers", torch.float16): 1e-2,
    ("transformers", torch.bfloat16): 2e-2,
}
"""How far logits may be. GPTQModel multiplies in the asked precision, while the kernel that
transformers picks on a CPU makes more of its own. Plain rounding is over 0.04 away."""


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, QuantizedModel]]:
    folder = tmp_path_factory.mktemp("checkpoints")
    made = {}
    for name, (architecture, changes, quantizer) in CASES.items():
        model = tiny_model(architecture, **changes)
        made[name] = quantizer.quantize(model, [tiny_tokens(8, 32)])
        made[name].save(folder / name)
    return folder, made


@pytest.mark.parametrize("name", CASES)
def test_by_hand(saved: tuple[Path, dict[str, QuantizedModel]], name: str) -> None:
    """The layout as AutoAWQ's WQLinear_GEMM documents it, unpacked nibble by nibble."""
    folder, made = saved[0] / name, saved[1][name]
    tensors = load_file(folder / "model.safetensors")
    config = AutoConfig.from_pretrained(folder)
    settings = config.quantization_config
    assert settings["quant_method"] == "awq"
    assert settings["bits"] == 4
    assert settings["zero_point"] is True
    assert settings["version"] == "gemm"
    assert settings["group_size"] == (made.group_size or -1)
    for layer in made.weights:
        scales = tensors.pop(f"{layer}.scales").float()
        codes = nibbles(tensors.pop(f"{layer}.qweight"))
        zeros = nibbles(tensors.pop(f"{layer}.qzeros"))
        size = len(codes) // len(scales)
        weight = (codes - zeros.repeat_interleave(size, 0)) * scales.repeat_interleave(size, 0)
        tensors[f"{layer}.weight"] = weight.T.contiguous()
    del config.quantization_config
    network = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    found = network.load_state_dict(tensors, strict=False)
    assert {key for key in found.missing_keys if key != "lm_head.weight"} == set()
    with torch.inference_mode():
        theirs = network(input_ids=tiny_tokens(2, 16)).logits
    assert torch.equal(theirs, logits(made.model, torch.float32))


def nibbles(words: Tensor) -> Tensor:
    """``(rows, n / 8)`` words as ``(rows, n)`` codes: output 8 c + j is at nibble ORDER[j]."""
    order = [0, 4, 1, 5, 2, 6, 3, 7]
    packed = words.numpy().view(np.uint32)
    codes = np.stack([(packed >> (4 * nibble)) & 15 for nibble in order], axis=-1)
    return torch.from_numpy(codes.reshape(len(packed), -1).astype(np.float32))


@pytest.fixture(scope="module", params=["gptqmodel", "transformers"])
def opened(
    request: pytest.FixtureRequest,
    saved: tuple[Path, dict[str, QuantizedModel]],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[str, Path]:
    pytest.importorskip("gptqmodel", reason="transformers opens AWQ through GPTQModel")
    out = tmp_path_factory.mktemp(request.param)
    script = Path(__file__).with_name("opened.py")
    folders = [saved[0] / name for name in CASES]
    subprocess.run([sys.executable, script, request.param, out, *folders], check=True)
    return request.param, out


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize("name", CASES)
def test_in_other_software(
    saved: tuple[Path, dict[str, QuantizedModel]],
    opened: tuple[str, Path],
    name: str,
    dtype: torch.dtype,
) -> None:
    library, out = opened
    made = saved[1][name]
    found = load_file(out / f"{name}-{str(dtype).removeprefix('torch.')}.safetensors")
    here = logits(made.model.copy(), dtype)
    distance = float((found.pop("logits") - here).norm() / here.norm())
    assert distance < LIMITS[library, dtype]
    assert found.keys() == (made.weights.keys() if library == "gptqmodel" else set())
    for layer, weight in found.items():
        ours = made.weights[layer].dequantize()
        assert torch.allclose(weight, ours, rtol=2**-8 if dtype == torch.bfloat16 else 0, atol=0)


def logits(model: LanguageModel, dtype: torch.dtype) -> Tensor:
    with torch.inference_mode():
        found: Tensor = model.network.to(dtype)(input_ids=tiny_tokens(2, 16)).logits.float()
    return found
