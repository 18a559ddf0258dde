"""Tuning with compiled decoder blocks: the same training, by other code."""

from __future__ import annotations

import emulated
import pytest
import torch
from recording import some
from tiny import tiny_model, tiny_tokens
from torch._dynamo.utils import counters

from npft.compiling import compiled
from npft.errors import NpftError
from npft.models import streamed
from npft.objectives import KL
from npft.samplers import StepUniform
from npft.streaming import find_blocks
from npft.tuning import Tuning, tune


@pytest.mark.slow
@emulated.needs_compiler
def test_losses_are_those_of_plain_blocks() -> None:
    model = tiny_model("Llama")

    def trained(compile: bool) -> list[tuple[float | None, float | None]]:
        settings = Tuning(epochs=1, batch_size=2, rank=2, terms="both", compile=compile)
        adapter = tune(model, tiny_tokens(4), some(model), StepUniform(), KL(), settings)
        return [(loss.noisy, loss.clean) for loss in adapter.losses]

    plain = trained(False)
    counters.clear()
    found = trained(True)
    assert counters["stats"]["unique_graphs"] > 0
    for mine, theirs in zip(found, plain, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-3, abs=1e-6)
    assert all(block._compiled_call_impl is None for block in find_blocks(model.network)[1])


def test_streamed_models_are_refused() -> None:
    model = streamed(tiny_model("Llama"), torch.device("cpu"))
    with pytest.raises(NpftError, match="needs a resident model"), compiled(model):
        pass
