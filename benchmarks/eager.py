"""The released code's way through the same work: small batches, plain backward, dense copies."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from npft.adapters import attached, trainable
from npft.artifacts import LanguageModel, Outliers
from npft.contracts import Objective
from npft.grid import Grid
from npft.samplers import StepUniform


def forward_backward(model: LanguageModel, tokens: Tensor) -> None:
    """One ordinary pass over a batch, with the gradients of the layers' weights."""
    for layer in model.layers.values():
        layer.module.weight.requires_grad_(True)  # type: ignore[operator,union-attr]
    model.network(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()
    model.network.zero_grad()


def eager_scores(model: LanguageModel, windows: Tensor) -> dict[str, Tensor]:
    """Squared gradients of one window after the other, summed in the model's own dtype."""
    weights = {name: layer.module.weight for name, layer in model.layers.items()}
    sums: dict[str, Tensor] = {}
    for weight in weights.values():
        weight.requires_grad_(True)  # type: ignore[operator,union-attr]
    for window in windows:
        model.network(input_ids=window[None], labels=window[None]).loss.backward()
        for name, weight in weights.items():
            squared = weight.grad**2  # type: ignore[operator,union-attr]
            sums[name] = sums[name] + squared if name in sums else squared
        model.network.zero_grad()
    model.network.requires_grad_(False)
    return sums


def eager_tuning(
    model: LanguageModel, windows: Tensor, chosen: Mapping[str, Outliers], objective: Objective
) -> None:
    """Both terms of eq. 7 in batches of two, peft's own layers, noise as dense matrices."""
    names = list(model.layers)
    with attached(model, names, rank=16, alpha=32, dropout=0.0, seed=0) as (wrapped, adapted):
        for layer in adapted.layers.values():
            del layer.wrapper.forward  # type: ignore[attr-defined]
        optimizer = torch.optim.AdamW(trainable(wrapped), lr=5e-5)
        random = torch.Generator(windows.device).manual_seed(0)
        for tokens in windows.split(2):
            original = None
            if objective.needs_original:
                with torch.no_grad(), wrapped.disable_adapter():
                    original = wrapped(input_ids=tokens)
            saved = {n: layer.base.clone() for n, layer in adapted.layers.items()}  # type: ignore[attr-defined]
            with torch.no_grad():
                for name, layer in adapted.layers.items():
                    base: Tensor = layer.base  # type: ignore[attr-defined]
                    positions = chosen[name].indices(base.device)
                    noise = StepUniform().sample(layer.weight, positions, Grid(4), random)
                    mask = torch.zeros_like(base).flatten()
                    mask[positions] = noise
                    base.add_(mask.view_as(base))
            loss = objective.loss(wrapped(input_ids=tokens), tokens, original)
            loss.backward()
            with torch.no_grad():
                for name, layer in adapted.layers.items():
                    layer.base.copy_(saved[name])  # type: ignore[attr-defined]
            (0.5 * objective.loss(wrapped(input_ids=tokens), tokens, original)).backward()
            float(loss.detach())
            optimizer.step()
            optimizer.zero_grad()
