"""Quantized tiny models of every kind, and what their folders hold."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tiny import tiny_model, tiny_tokens
from torch import Tensor

from npft.artifacts import QuantizedModel, SparsePart, UniformWeight
from npft.checkpoints import WEIGHTS
from npft.contracts import Quantizer


def quantized(quantizer: Quantizer, architecture: str = "Llama", **changes: Any) -> QuantizedModel:
    """A tiny model through a quantizer, some of its rows all positive or all negative.

    Those have zero points at the ends of the codes.
    """
    model = tiny_model(architecture, **changes)
    for layer in model.layers.values():
        layer.weight[:3] = layer.weight[:3].abs()
        layer.weight[3:5] = -layer.weight[3:5].abs()
    ones = {name: torch.ones_like(layer.weight) for name, layer in model.layers.items()}
    return quantizer.quantize(model, [], ones)


def act_ordered(model: QuantizedModel) -> QuantizedModel:
    """The same with the inputs of every layer in random groups of the same size."""
    random = torch.Generator().manual_seed(0)
    weights = {}
    for name, weight in model.weights.items():
        assert isinstance(weight, UniformWeight)
        order = torch.randperm(weight.shape[1], generator=random)
        groups = (order // weight.group_size).to(torch.int32)
        weights[name] = replace(weight, g_idx=groups)
    return _filled(replace(model, weights=weights))


def with_sparse(model: QuantizedModel, every: int = 37) -> QuantizedModel:
    """The same with a value added at every 37th weight; some rows have none, some several."""
    weights = {}
    for name, weight in model.weights.items():
        out_features, in_features = weight.shape
        positions = torch.arange(0, out_features * in_features, every)
        values = torch.linspace(-1, 1, len(positions))
        sparse = SparsePart.at(positions, values, weight.shape)
        weights[name] = replace(weight, sparse=sparse)  # type: ignore[type-var]
    return _filled(replace(model, weights=weights))


def _filled(model: QuantizedModel) -> QuantizedModel:
    for name, weight in model.weights.items():
        model.model.layers[name].weight.copy_(weight.dequantize())
    return model


def logits(network: Any) -> Tensor:
    """What a network predicts on the same few tokens, in float32."""
    with torch.inference_mode():
        found: Tensor = network(input_ids=tiny_tokens(2, 16)).logits.float()
    return found


def stored(folder: Path) -> dict[str, Tensor]:
    """Every tensor in a checkpoint."""
    return load_file(folder / WEIGHTS)
