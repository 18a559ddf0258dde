"""The magnitude baseline."""

from __future__ import annotations

import pytest
import torch
from tiny import tiny_model

from npft.scorers import Magnitude
from npft.testing import check_scorer


def test_contract() -> None:
    check_scorer(Magnitude())


@pytest.mark.parametrize("architecture", ["Llama", "GPT2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scores_are_absolute_weights(architecture: str, dtype: torch.dtype) -> None:
    model = tiny_model(architecture)
    model.network.to(dtype)
    found = dict(Magnitude().score(model, []))
    modules = dict(model.network.named_modules())
    assert list(found) == list(model.layers)
    for name, values in found.items():
        stored = modules[name].weight.float()
        assert torch.equal(values, (stored.T if architecture == "GPT2" else stored).abs())


def test_scores_are_no_view_of_the_weights() -> None:
    model = tiny_model()
    before = {name: layer.weight.clone() for name, layer in model.layers.items()}
    for _, values in Magnitude().score(model, []):
        values.zero_()
    assert all(torch.equal(layer.weight, before[n]) for n, layer in model.layers.items())
