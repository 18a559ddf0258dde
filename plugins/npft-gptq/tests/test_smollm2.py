"""On a real model GPTQ must stay closer to the original than rounding to the same grid."""

from __future__ import annotations

from functools import cache

import pytest
from demonstration import demonstration_model
from torch import Tensor

from npft import models
from npft.artifacts import LanguageModel
from npft.data import choose, load_text, windows
from npft.evaluation.quality import Original, evaluate
from npft.quantizers.rtn import RTN
from npft_gptq import GPTQ


@cache
def smollm2() -> LanguageModel:
    return models.load(demonstration_model())


def text(split: str, samples: int) -> Tensor:
    return choose(windows(smollm2().tokenizer, load_text("builtin", split), 128), samples, 0)


@pytest.mark.parametrize(
    ("bits", "group_size"),
    [
        (4, 0),
        (3, 0),
        pytest.param(4, 64, marks=pytest.mark.slow),
        pytest.param(3, 64, marks=pytest.mark.slow),
    ],
)
def test_gptq_beats_rtn(bits: int, group_size: int) -> None:
    original = Original(smollm2(), text("held-back", 8))
    quantized = GPTQ(bits=bits, group_size=group_size).quantize(
        smollm2(), text("calibration", 32).split(4)
    )
    assert quantized.notes == ()
    rounded = RTN(bits=bits, group_size=group_size).quantize(smollm2(), [])
    assert quantized.average_bits == rounded.average_bits
    kl = evaluate(quantized.model, original).kl
    nearest = evaluate(rounded.model, original).kl
    print(f"KL at {bits} bits, group {group_size}: GPTQ {kl:.4f}, RTN {nearest:.4f}")
    assert kl < 0.7 * nearest
