"""The search for scales: equations 4 and 5 of the AWQ paper (arXiv 2306.00978)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from npft.grid import Grid
from npft_awq.blocks import Block, Call, first
from npft_awq.rounding import rounded
from npft_awq.structure import Group


def search(
    block: Block, group: Group, calls: Iterable[Call], grid: Grid, points: int
) -> Tensor | None:
    """The scales ``(in,)`` with which quantizing the group changes its module's output least.

    ``s = x^alpha / sqrt(max * min)``, where x is the mean magnitude of each input and alpha runs
    over ``points`` values i / points. Alpha 0 is no scaling at all. The module is the smallest
    that holds the whole group (the attention, the MLP, or the layer itself); the error is the
    squared difference of its outputs, summed over the calibration windows.

    Returns:
        The scales, or None where the error is infinite or NaN for every alpha.
    """
    module, seen, magnitude = _observe(block, group, calls)
    layers = [block.layers[name] for name in group.layers]
    originals = [layer.weight.clone() for layer in layers]
    best: Tensor | None = None
    least = math.inf
    for point in range(points):
        scales = magnitude.pow(point / points).clamp(min=1e-4)
        scales = scales / (scales.max() * scales.min()).sqrt()
        for layer, original in zip(layers, originals, strict=True):
            layer.weight.copy_(rounded(original.float() * scales, grid) / scales)
        error = sum(float((call.on(module) - out).float().square().sum()) for call, out in seen)
        if error < least:
            best, least = scales, error
    for layer, original in zip(layers, originals, strict=True):
        layer.weight.copy_(original)
    return best


def _observe(
    block: Block, group: Group, calls: Iterable[Call]
) -> tuple[nn.Module, list[tuple[Call, Tensor]], Tensor]:
    """The group's module, its calls and outputs, and the mean magnitude of its inputs ``(in,)``."""
    module = block.module.get_submodule(_common(group.layers))
    layer = block.layers[group.layers[0]]
    seen: list[tuple[Call, Tensor]] = []
    total = torch.zeros(layer.in_features, device=layer.weight.device)
    count = 0

    def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        seen.append((Call(args, kwargs), first(out)))

    def add(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        nonlocal count
        magnitudes = args[0].flatten(0, -2).float().abs()
        total.add_(magnitudes.sum(dim=0))
        count += len(magnitudes)

    with ExitStack() as hooks:
        hooks.enter_context(module.register_forward_hook(keep, with_kwargs=True))
        hooks.enter_context(layer.module.register_forward_pre_hook(add))
        for call in calls:
            call.on(block.module)
    return module, seen, total / count


def _common(names: tuple[str, ...]) -> str:
    """The name of the smallest module that holds all of these; a single layer is its own."""
    split = [name.split(".") for name in names]
    shared = 0
    while all(len(parts) > shared and parts[shared] == split[0][shared] for parts in split):
        shared += 1
        if shared == len(split[0]):
            break
    return ".".join(split[0][:shared])
