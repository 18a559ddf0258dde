"""Every layer of a model against GPTQ in float64, on the inputs that the quantized model gives it.

What a layer reads depends only on the layers before it, so the finished model shows to each layer
the inputs that its Hessian was made of (up to the scales, which are stored in 16 bits).
"""

from __future__ import annotations

from typing import Any

import pytest
import reference
import torch
from tiny import tiny_model, tiny_tokens
from torch import Tensor

from npft.artifacts import LanguageModel
from npft_gptq import GPTQ

CALIBRATION = [tiny_tokens(8, 32, seed=1), tiny_tokens(8, 32, seed=2)]


def inputs_of_layers(model: LanguageModel) -> dict[str, Tensor]:
    seen: dict[str, list[Tensor]] = {name: [] for name in model.layers}
    for name, layer in model.layers.items():
        layer.module.register_forward_pre_hook(
            lambda _, given, name=name: seen[name].append(given[0].flatten(0, -2))
        )
    with torch.no_grad():
        for batch in CALIBRATION:
            model.network(input_ids=batch)
    return {name: torch.cat(given) for name, given in seen.items()}


def check(model: LanguageModel, agreement: float, **options: Any) -> None:
    """Layer losses within a tenth of the reference's, and codes that agree for the most part.

    Where two codes are almost equally near, float32 may take the other one than float64, and what
    follows makes up for another error: so not all codes agree.
    """
    quantized = GPTQ(**options).quantize(model, CALIBRATION)
    assert quantized.notes == ()
    same = total = 0
    for name, inputs in inputs_of_layers(quantized.model).items():
        weight, packed = model.layers[name].weight, quantized.weights[name]
        answer = reference.gptq(weight, inputs, **options)
        step = packed.scale.float().amax(dim=1, keepdim=True)
        same += int(((answer - packed.dequantize()).abs() < 0.25 * step).sum())
        total += weight.numel()
        best = reference.layer_loss(weight, answer, inputs)
        loss = reference.layer_loss(weight, packed.dequantize(), inputs)
        assert loss == pytest.approx(best, rel=0.1), name
    assert same / total > agreement


@pytest.mark.parametrize(
    ("agreement", "options"),
    [
        (0.98, dict(bits=2)),
        (0.98, dict(bits=3, desc_act=True)),
        (0.95, dict(bits=3, group_size=16)),
        (0.95, dict(bits=3, group_size=16, desc_act=True)),
        (0.98, dict(bits=4, sym=True)),
        (0.98, dict(bits=8, sym=True, desc_act=True)),
        (0.98, dict(bits=4, damp_percent=0.5)),
    ],
    ids=str,
)
def test_options(agreement: float, options: dict[str, Any]) -> None:
    check(tiny_model(num_key_value_heads=4), agreement, **options)


@pytest.mark.parametrize("architecture", ["GPT2", "OPT", "GPTNeoX", "Gemma", "Phi"])
def test_architectures(architecture: str) -> None:
    check(tiny_model(architecture), 0.95, bits=4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bits", [4, 8])
def test_16_bit_models(dtype: torch.dtype, bits: int) -> None:
    """Codes come whole out of 16-bit weights, with 8 bits too; what the layers read is rounder."""
    model = tiny_model()
    model.network.to(dtype)
    check(model, 0.75, bits=bits)
