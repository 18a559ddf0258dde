"""On a real model: closer to the original than rounding, at the same storage."""

from __future__ import annotations

import pytest
import torch
from demonstration import demonstration_model

from npft import models
from npft.artifacts import LanguageModel, QuantizedModel
from npft.quantizers import RTN
from npft_awq.quantizer import AWQ

CALIBRATION = """The harbour of the old town silted up in the seventeenth century, and the trade
moved to the deeper anchorage across the bay. What remained were the warehouses, a customs house
of grey stone, and the families who had always fished. To compute the area of a circle, multiply
the square of its radius by pi. "Where have you been?" she asked, putting down the letter. He did
not answer at once; the rain had soaked his coat, and the road from the station had been longer
than he remembered. In Python, a list comprehension builds a new list from an iterable. Vaccines
train the immune system to recognise a pathogen before it has caused disease. The committee voted
seven to two to postpone the decision until the budget for next year had been published."""

EVALUATION = """Glaciers carve valleys as they move, grinding the rock beneath them into fine
powder that turns the meltwater milky. Every morning the baker lit the oven at three, long before
the first customers came down the hill. The function returns the index of the first element that
satisfies the condition, or minus one if there is none. Parliament was dissolved in the spring and
elections were called for June. My grandmother kept bees behind the house, and in August we helped
her to take the honey. A prime number is divisible only by one and by itself."""


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return models.load(demonstration_model(), device="cpu")


def tokens(model: LanguageModel, text: str, context: int) -> torch.Tensor:
    assert model.tokenizer is not None
    found = torch.tensor(model.tokenizer(text)["input_ids"])
    return found[: len(found) // context * context].view(-1, context)


def divergence(model: LanguageModel, quantized: QuantizedModel) -> float:
    """KL to the original model, in nats per token."""
    text = tokens(model, EVALUATION, 64)
    with torch.no_grad():
        before = model.network(text).logits.log_softmax(-1)
        after = quantized.model.network(text).logits.log_softmax(-1)
    return float((before.exp() * (before - after)).sum(-1).mean())


def test_awq_beats_rounding_at_group_64(model: LanguageModel) -> None:
    rtn = RTN(group_size=64).quantize(model, [])
    awq = AWQ(group_size=64, grid=10).quantize(model, tokens(model, CALIBRATION, 64).split(2))
    assert awq.average_bits == rtn.average_bits
    assert awq.notes == ()
    assert divergence(model, awq) < 0.8 * divergence(model, rtn)
