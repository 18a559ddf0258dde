"""Passes through an adapted model, launched directly."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from tiny import tiny_model, tiny_tokens
from torch import Tensor

from npft.adapters import attached
from npft.objectives import KL, CrossEntropy
from npft.passes import Direct, Scale, balanced, plain
from npft.processes import ALONE


@contextmanager
def direct(objective: KL | CrossEntropy, scale: Scale) -> Iterator[Direct]:
    """Passes through a model whose adapter is off zero."""
    model = tiny_model()
    with attached(model, list(model.layers), rank=2, alpha=4, dropout=0, seed=0) as (wrapped, _):
        wrapped.eval()
        passes = Direct(wrapped, objective, objective, scale, ALONE)
        random = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in passes.adapter:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=random))
        yield passes


def gradients(passes: Direct) -> list[Tensor]:
    return [p.grad.clone() for p in passes.adapter if p.grad is not None]


objectives = pytest.mark.parametrize("objective", [KL(), CrossEntropy()], ids=lambda o: o.name)
scales = pytest.mark.parametrize("scale", [plain, balanced])


@objectives
@scales
def test_gradients_add_up_in_place_as_they_do_from_nothing(objective, scale) -> None:
    tokens = tiny_tokens()
    with direct(objective, scale) as passes:
        original = passes.original(tokens)
        for weight in (1.0, 0.3):
            passes.learn(tokens, original, weight)
        usual = gradients(passes)
        lasting = [torch.zeros_like(p) for p in passes.adapter]
        for parameter, zero in zip(passes.adapter, lasting, strict=True):
            parameter.grad = zero
        for weight in (1.0, 0.3):
            passes.learn(tokens, original, weight)
        assert all(p.grad is zero for p, zero in zip(passes.adapter, lasting, strict=True))
        assert len(usual) == len(lasting) > 0
        assert all(map(torch.equal, usual, lasting))
        passes.forget()
        assert not gradients(passes)


@objectives
@scales
@pytest.mark.parametrize("weight", [1.0, 0.3, 1.7])
def test_a_weight_may_be_a_tensor(objective, scale, weight) -> None:
    tokens = tiny_tokens()
    with direct(objective, scale) as passes:
        original = passes.original(tokens)
        usual = [passes.learn(tokens, original, weight), *gradients(passes)]
        passes.forget()
        ours = [passes.learn(tokens, original, torch.tensor(weight)), *gradients(passes)]
        assert all(map(torch.equal, usual, ours))


@objectives
@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_the_gradient_is_that_of_the_weighted_loss(objective, weight) -> None:
    """Against autograd of the losses themselves: of a logarithm where they are balanced."""
    tokens = tiny_tokens()
    for scale, outer in ((plain, lambda x: x), (balanced, torch.log)):
        with direct(objective, scale) as passes:
            original = passes.original(tokens)
            loss = passes.learn(tokens, original, weight)
            again = objective.loss(passes.forward(tokens), tokens, original)
            assert torch.equal(loss, again)
            assert not loss.requires_grad
            wanted = torch.autograd.grad(weight * outer(again), passes.adapter)
            torch.testing.assert_close(gradients(passes), list(wanted))


def test_the_original_is_the_model_without_its_adapter() -> None:
    model, tokens = tiny_model(), tiny_tokens()
    with torch.no_grad():
        expected = model.network(input_ids=tokens, use_cache=False).logits
    with direct(KL(), plain) as passes:
        found = passes.original(tokens)
        assert torch.equal(found.logits, expected)
        assert not torch.equal(passes.forward(tokens).logits, expected)
    with direct(CrossEntropy(), plain) as passes:
        assert passes.original(tokens) is None
