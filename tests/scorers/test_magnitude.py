"""The magnitude baseline."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import save_tiny, tiny_model

from npft import config, steps
from npft.plugins import discover
from npft.progress import Silent
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


def test_scores_of_transposed_layers_are_kept(tmp_path: Path) -> None:
    """GPT-2's are views of matrices that lie the other way round, which safetensors refuses."""
    model = save_tiny(tmp_path / "model", "GPT2")
    values = {"model": str(model), "output": str(tmp_path / "run"), "device": "cpu"}
    few = {"samples": 2, "context": 16, "eval_samples": 1}
    settings = config.make({**values, **few, "scorer": {"name": "magnitude"}})
    steps.score(settings, discover(), Silent())
    kept = load_file(tmp_path / "run" / "scores" / "sensitivities.safetensors")
    for name, layer in tiny_model("GPT2").layers.items():
        assert torch.equal(kept[name], layer.weight.abs())
