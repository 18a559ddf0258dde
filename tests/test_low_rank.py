"""The short way through a LoRA layer is peft's way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny import tiny_model, tiny_tokens
from torch import Tensor

from npft.adapters import Switches, attached, trainable
from npft.losses import sequence_losses

Results = tuple[Tensor, list[Tensor]]


def both_ways(
    architecture: str, dtype: torch.dtype, run: Callable[[Any], Results]
) -> list[Results]:
    """``run(wrapped)`` with our forward and, those taken away, with peft's own."""
    model = tiny_model(architecture)
    model.network.to(dtype)
    with attached(model, list(model.layers), rank=3, alpha=12, dropout=0.5, seed=0) as (wrapped, a):
        with torch.no_grad():
            for parameter in trainable(wrapped):
                parameter.normal_(0, 0.2, generator=torch.Generator().manual_seed(1))
        wrapped.eval()
        ours = run(wrapped)
        for layer in a.layers.values():
            del layer.wrapper.forward  # type: ignore[attr-defined]
        return [ours, run(wrapped)]


def losses_and_gradients(wrapped: Any, tokens: Tensor | None = None) -> Results:
    tokens = tiny_tokens() if tokens is None else tokens
    with torch.enable_grad():
        losses = sequence_losses(wrapped(input_ids=tokens).logits, tokens)
        return losses.detach(), list(torch.autograd.grad(losses.sum(), trainable(wrapped)))


def assert_close(results: list[Results], rtol: float, atol: float) -> None:
    (mine, my_gradients), (theirs, their_gradients) = results
    torch.testing.assert_close(mine, theirs, rtol=rtol, atol=0)
    for one, other in zip(my_gradients, their_gradients, strict=True):
        assert other.any()
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=rtol, atol=atol * float(other.abs().max()))


@pytest.mark.parametrize("architecture", ["Llama", "GPT2", "OPT", "GPTNeoX"])
def test_losses_and_gradients_are_those_of_peft(architecture: str) -> None:
    results = both_ways(architecture, torch.float32, losses_and_gradients)
    assert_close(results, rtol=1e-4, atol=1e-5)


def test_in_half_precision_too() -> None:
    results = both_ways("Llama", torch.bfloat16, losses_and_gradients)
    assert_close(results, rtol=0.1, atol=0.15)


def test_dropout_is_peft_s_own() -> None:
    def run(wrapped: Any) -> Results:
        torch.manual_seed(3)
        with Switches(wrapped).dropout():
            return losses_and_gradients(wrapped)

    with torch.random.fork_rng(devices=[]):
        results = both_ways("Llama", torch.float32, run)
    assert_close(results, rtol=1e-4, atol=1e-5)
    without = both_ways("Llama", torch.float32, losses_and_gradients)
    assert not torch.allclose(results[0][0], without[0][0], rtol=1e-3)


def test_an_adapter_that_is_off_does_nothing() -> None:
    def run(wrapped: Any) -> Results:
        with torch.no_grad(), Switches(wrapped).without_adapter():
            return wrapped(input_ids=tiny_tokens()).logits, []

    (mine, _), (theirs, _) = both_ways("Llama", torch.float32, run)
    assert torch.equal(mine, theirs)
    with torch.no_grad():
        assert torch.equal(mine, tiny_model().network(input_ids=tiny_tokens()).logits)
