"""On a real model, GPTQ is nearer to the original than rounding to nearest."""

from __future__ import annotations

import functools

import pytest
import torch
from demonstration import demonstration_model
from torch import Tensor

from npft import data, models
from npft.artifacts import LanguageModel
from npft.losses import divergence
from npft.quantizers.rtn import RTN
from npft_autogptq import AutoGPTQ

CONTEXT = 128


@functools.cache
def smollm2() -> LanguageModel:
    return models.load(demonstration_model(), device="cpu")


@functools.cache
def windows(split: str) -> Tensor:
    return data.windows(smollm2().tokenizer, data.load_text(data.BUILTIN, split), CONTEXT)


def kl(model: LanguageModel) -> float:
    """Nats per token from the original on text that calibration has not seen."""
    with torch.no_grad():
        tokens = windows("held-back")[:8]
        original = smollm2().network(input_ids=tokens).logits
        return float(divergence(model.network(input_ids=tokens).logits, original))


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"bits": 4}, {"bits": 3}, {"bits": 4, "group_size": 64}])
def test_gptq_beats_rounding_to_nearest(options: dict[str, int]) -> None:
    gptq = AutoGPTQ(**options).quantize(smollm2(), windows("calibration")[:32].split(8))
    assert gptq.notes == ()
    nearest = RTN(**options).quantize(smollm2(), [])
    assert kl(gptq.model) < 0.9 * kl(nearest.model)
