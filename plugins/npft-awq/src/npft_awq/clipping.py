"""The search for a clipping range of each group of weights."""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from npft.grid import Grid
from npft_awq.blocks import Block, Call
from npft_awq.rounding import rounded
from npft_awq.structure import Group

SHRINKS = [i / 20 for i in range(10)]
"""What is cut off the largest magnitude: as the paper's code, from nothing to 45%."""

_QUERY_OR_KEY = re.compile(r"(^|\.)(q|k)_|query|key|qkv|c_attn", re.IGNORECASE)


def clippable(name: str) -> bool:
    """Whether a layer may be clipped: all but those that make queries or keys.

    Their product goes through a softmax, so that the error of each alone says little.
    """
    return _QUERY_OR_KEY.search(name) is None


def second_moments(
    block: Block, groups: Iterable[Group], calls: Iterable[Call], grid: Grid
) -> dict[str, Tensor]:
    """``x^T x`` within each group of inputs, ``(groups, group, group)``, by layer name.

    Layers that read the same tensor share theirs.
    """
    moments: dict[str, Tensor] = {}

    def adding(to: Tensor) -> Any:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            inputs = args[0].flatten(0, -2).float().view(-1, to.shape[0], to.shape[1])
            grouped = inputs.transpose(0, 1)
            to.baddbmm_(grouped.mT, grouped)

        return hook

    with ExitStack() as hooks:
        for group in groups:
            layer = block.layers[group.layers[0]]
            size = grid.group_size or layer.in_features
            shape = (layer.in_features // size, size, size)
            sums = torch.zeros(shape, device=layer.weight.device)
            hooks.enter_context(layer.module.register_forward_pre_hook(adding(sums)))
            moments |= dict.fromkeys(group.layers, sums)
        for call in calls:
            call.on(block.module)
    return moments


def clipped(weight: Tensor, moments: Tensor, grid: Grid) -> Tensor:
    """``weight (out, in)``, float32, with each group of each row cut to its best range.

    The range is the share of the group's largest magnitude with which quantizing changes the
    group's part of the output least: ``d^T (x^T x) d`` for the change d of its weights, which is
    the squared error summed over all calibration tokens.
    """
    grouped = grid.groups(weight)
    largest = grouped.abs().amax(dim=2, keepdim=True)
    limit = largest.clone()
    least = torch.full_like(largest, torch.inf)
    for shrink in SHRINKS:
        trial = largest * (1 - shrink)
        cut = grouped.clamp(-trial, trial).reshape(weight.shape)
        change = grid.groups(rounded(cut, grid) - weight).transpose(0, 1)
        error = ((change @ moments) * change).sum(dim=2).T.unsqueeze(2)
        better = error < least
        least = torch.where(better, error, least)
        limit = torch.where(better, trial, limit)
    return grouped.clamp(-limit, limit).reshape(weight.shape)
