"""Where the first number that is NaN or infinite comes from."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from npft.adapters import AdaptedLayer
from npft.artifacts import LanguageModel


def first_bad_layer(model: LanguageModel, forward: Callable[[], object]) -> str:
    """``layer NAME``: the first in a forward pass whose output is not finite.

    Where all of them are, the numbers went bad in what follows the layers, such as the head.
    """
    found: list[str] = []

    def watch(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            if not found and not bool(output.isfinite().all()):
                found.append(f"layer {name}")

        return hook

    with ExitStack() as stack, torch.no_grad():
        for name, layer in model.layers.items():
            module = layer.wrapper if isinstance(layer, AdaptedLayer) else layer.module
            stack.callback(module.register_forward_hook(watch(name)).remove)
        forward()
    return found[0] if found else "what follows the linear layers"
