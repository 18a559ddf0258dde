"""Perturbations are put on as they are, and taken off to the bit."""

from __future__ import annotations

import pytest
import torch
from tiny import tiny_model, tiny_tokens

from npft.evaluation.quality import predict
from npft.lens.applying import Seen, on_activations, on_weights

ARCHITECTURES = ["Llama", "OPT", "GPT2"]


def tenth(_name: str, values: torch.Tensor) -> torch.Tensor:
    return 0.1 * values


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_weights_get_the_perturbation_and_come_back(architecture: str) -> None:
    model, seen = tiny_model(architecture), Seen()
    before = {name: layer.weight.clone() for name, layer in model.layers.items()}
    with on_weights(model, tenth, seen):
        for name, layer in model.layers.items():
            assert torch.equal(layer.weight, before[name] + 0.1 * before[name])
    assert all(torch.equal(layer.weight, before[n]) for n, layer in model.layers.items())
    assert seen.norm == pytest.approx(0.1)
    assert seen.correlation == pytest.approx(1, abs=1e-5)


def test_weights_come_back_after_an_error() -> None:
    model = tiny_model()
    before = {name: layer.weight.clone() for name, layer in model.layers.items()}
    last = list(before)[-1]

    def fails(name: str, values: torch.Tensor) -> torch.Tensor:
        if name == last:
            raise RuntimeError("stop")
        return values

    with pytest.raises(RuntimeError, match="stop"), on_weights(model, fails, Seen()):
        pass
    assert all(torch.equal(layer.weight, before[n]) for n, layer in model.layers.items())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_activations_scaled_alike_are_weights_scaled_alike(architecture: str) -> None:
    """W (x + x / 10) = (W + W / 10) x."""
    model, tokens, seen = tiny_model(architecture), tiny_tokens(), Seen()
    clean = predict(model, tokens)
    with on_activations(model, tenth, seen):
        by_activations = predict(model, tokens)
    with on_weights(model, tenth, Seen()):
        by_weights = predict(model, tokens)
    assert torch.allclose(by_activations, by_weights, rtol=1e-4, atol=1e-3)
    assert not torch.allclose(by_activations, clean, atol=0.1)
    assert torch.equal(predict(model, tokens), clean)
    assert seen.norm == pytest.approx(0.1)


def test_every_token_is_a_vector_of_its_own() -> None:
    model, shapes = tiny_model(), []

    def look(_name: str, values: torch.Tensor) -> torch.Tensor:
        shapes.append(tuple(values.shape))
        return torch.zeros_like(values)

    with on_activations(model, look, Seen()):
        predict(model, tiny_tokens(3, 8))
    widths = [layer.in_features for layer in model.layers.values()]
    assert sorted(shapes) == sorted((24, width) for width in widths)
