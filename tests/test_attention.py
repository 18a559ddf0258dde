"""Attention without a mask: the same numbers, and nothing that the host waits for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import CONFIGS, tiny_network, tiny_tokens
from torch import Tensor
from transformers import PreTrainedModel

from npft.attention import check_unmasked, unmasked
from npft.testing.waiting import Waits

architectures = pytest.mark.parametrize("architecture", CONFIGS)


def passes(network: PreTrainedModel, tokens: Tensor) -> list[Tensor]:
    """The loss, the logits and all gradients."""
    network.zero_grad()
    output = network(input_ids=tokens, labels=tokens, use_cache=False)
    output.loss.backward()
    gradients = [p.grad.clone() for p in network.parameters() if p.grad is not None]
    return [output.loss.detach(), output.logits.detach(), *gradients]


@architectures
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_all_numbers_are_the_same(architecture: str, dtype: torch.dtype) -> None:
    network, tokens = tiny_network(architecture).eval().to(dtype), tiny_tokens(context=32)
    tokens[1, 20:] = 0  # the padding token is a token like others
    usual = passes(network, tokens)
    with unmasked(network):
        ours = passes(network, tokens)
    assert len(usual) == len(ours) > 10
    assert all(map(torch.equal, usual, ours))
    check_unmasked(network, lambda: network(input_ids=tokens, use_cache=False))


@architectures
def test_the_host_waits_for_nothing(architecture: str) -> None:
    network, tokens = tiny_network(architecture).eval(), tiny_tokens()
    with Waits() as usual:
        network(input_ids=tokens, use_cache=False)
    with unmasked(network), Waits() as ours:
        network(input_ids=tokens, use_cache=False).logits.sum().backward()
    assert usual.found or architecture == "OPT"  # else there would be no need for any of this
    assert ours.found == []


def test_the_models_own_implementation_comes_back() -> None:
    network = tiny_network()
    with unmasked(network):
        assert network.config._attn_implementation != "sdpa"
    assert network.config._attn_implementation == "sdpa"
    with pytest.raises(ZeroDivisionError), unmasked(network):
        1 / 0  # noqa: B018
    assert network.config._attn_implementation == "sdpa"


def test_other_implementations_stay() -> None:
    network = tiny_network(attn_implementation="eager")
    with unmasked(network):
        assert network.config._attn_implementation == "eager"
    with pytest.raises(RuntimeError, match="attention is by eager, not by sdpa"):
        check_unmasked(network, lambda: network(input_ids=tiny_tokens()))


@pytest.mark.parametrize(("window", "fine"), [(16, True), (15, False), (4, False)])
def test_a_window_shorter_than_the_context_is_found(window: int, fine: bool) -> None:
    network, tokens = tiny_network("Mistral", sliding_window=window).eval(), tiny_tokens(context=16)

    def forward() -> Any:
        return network(input_ids=tokens, use_cache=False)

    if fine:
        check_unmasked(network, forward)
        return
    with pytest.raises(RuntimeError, match="needs a mask"):
        check_unmasked(network, forward)


def test_nan_is_no_difference() -> None:
    network, tokens = tiny_network().eval(), tiny_tokens()
    with torch.no_grad():
        network.lm_head.weight[3] = torch.nan
    check_unmasked(network, lambda: network(input_ids=tokens, use_cache=False))
