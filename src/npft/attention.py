"""Causal attention that no mask is made for, so that a forward pass never waits for the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

_NAME = "npft-causal"


@contextmanager
def unmasked(network: nn.Module) -> Iterator[None]:
    """Within this scope transformers' SDPA attention is causal by itself and gets no mask.

    transformers looks on the device whether a batch without a mask is several texts in one, or
    padded, before it leaves the mask out; where it cannot look it makes one, and other kernels
    run. An attention function under a name that no way to make masks is registered for gets
    None without a look. That is right where every position sees all positions before it: no
    padding, and no window shorter than the context.
    """
    from transformers import AttentionInterface

    AttentionInterface.register(_NAME, AttentionInterface()["sdpa"])
    before = [(config, config._attn_implementation) for config in _configurations(network)]
    try:
        for config, implementation in before:
            if implementation == "sdpa":
                config._attn_implementation_internal = _NAME
        yield
    finally:
        for config, implementation in before:
            config._attn_implementation_internal = implementation


def check_unmasked(network: nn.Module, forward: Callable[[], Any]) -> None:
    """Check that predictions are the same, bit for bit, within :func:`unmasked`.

    Args:
        network: whose attention is looked at.
        forward: gives an output of it, with ``logits``, again and again the same.

    Raises:
        RuntimeError: attention is not by SDPA, or needs more than to be causal.
    """
    others = {config._attn_implementation for config in _configurations(network)} - {"sdpa"}
    if others:
        raise RuntimeError(f"attention is by {', '.join(map(str, others))}, not by sdpa")
    with torch.no_grad():
        usual = forward().logits
        with unmasked(network):
            ours = forward().logits
    # By bytes: NaN, which a step under noise may give, is to be equal to itself.
    if not torch.equal(usual.view(torch.uint8), ours.view(torch.uint8)):
        raise RuntimeError("attention needs a mask beside the causal one")


def _configurations(network: nn.Module) -> list[Any]:
    """The configurations in use, each once: parts of a network may have their own."""
    found = {id(module.config): module.config for module in network.modules() if _has(module)}
    return list(found.values())


def _has(module: nn.Module) -> bool:
    return hasattr(getattr(module, "config", None), "_attn_implementation_internal")
