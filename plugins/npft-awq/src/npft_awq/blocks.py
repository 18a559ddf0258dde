"""A model as the chain of its decoder blocks, and calibration windows on their way through it."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from npft.artifacts import LanguageModel, LinearLayer
from npft.errors import Unavailable


@dataclass(frozen=True)
class Block:
    """One decoder block; ``layers`` are its linear layers by their names inside it."""

    name: str
    module: nn.Module
    layers: Mapping[str, LinearLayer]

    def in_float32(self) -> Block:
        """An independent copy in float32."""
        module = copy.deepcopy(self.module).float()
        layers = {n: replace(o, module=module.get_submodule(n)) for n, o in self.layers.items()}
        return Block(self.name, module, layers)


@dataclass(frozen=True)
class Call:
    """What a module was called with."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def on(self, module: nn.Module) -> Tensor:
        """The output, or the first of several, of ``module`` called so."""
        return first(module(*self.args, **self.kwargs))


def first(output: Any) -> Tensor:
    """A module's output, or the first of several."""
    tensor: Tensor = output[0] if isinstance(output, tuple) else output
    return tensor


def split(model: LanguageModel) -> list[Block]:
    """The blocks in order: the elements of the module list that holds the linear layers."""
    members: dict[str, dict[str, LinearLayer]] = {}
    for name, layer in model.layers.items():
        parts = name.split(".")
        paths = (".".join(parts[:depth]) for depth in range(1, len(parts)))
        listed = next(p for p in paths if isinstance(model.network.get_submodule(p), nn.ModuleList))
        block = ".".join(parts[: listed.count(".") + 2])
        members.setdefault(block, {})[name.removeprefix(f"{block}.")] = layer
    return [Block(n, model.network.get_submodule(n), layers) for n, layers in members.items()]


class Stream:
    """Calibration windows on their way through the float blocks, one block at a time.

    Only the inputs of the next block are kept, ``(batch, context, width)`` per batch. What else a
    block is called with (masks, positions) is recorded once for each block, because it may differ
    among blocks, as with sliding attention.
    """

    def __init__(
        self, model: LanguageModel, blocks: list[Block], batches: Iterable[Tensor]
    ) -> None:
        self._hidden: list[Tensor] = []
        self._others: list[dict[str, Call]] = []
        for tokens in batches:
            hidden, others = _record(model, blocks, tokens.to(model.device))
            self._hidden.append(hidden)
            self._others.append(others)

    def calls(self, block: Block) -> list[Call]:
        """The call of ``block`` for each batch, if all blocks before it have been passed."""
        return [
            Call((hidden, *others[block.name].args), others[block.name].kwargs)
            for hidden, others in zip(self._hidden, self._others, strict=True)
        ]

    def advance(self, block: Block) -> None:
        """Pass ``block``, whose weights must still be the float ones."""
        self._hidden = [call.on(block.module) for call in self.calls(block)]


def _record(
    model: LanguageModel, blocks: list[Block], tokens: Tensor
) -> tuple[Tensor, dict[str, Call]]:
    """The first block's input, and what else each block is called with.

    Raises:
        Unavailable: something happens to the hidden states between two blocks.
    """
    others: dict[str, Call] = {}
    passed: list[Tensor] = []

    def before(block: Block) -> RemovableHandle:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if not args or (others and args[0] is not passed[-1]):
                raise Unavailable(
                    f"awq cannot quantize {type(model.network).__name__}: its blocks do not hand "
                    "their output straight to the next; use another quantizer"
                )
            if not others:
                passed.append(args[0])
            others[block.name] = Call(args[1:], kwargs)

        return block.module.register_forward_pre_hook(hook, with_kwargs=True)

    def after(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
        passed[1:] = [first(output)]

    with ExitStack() as hooks:
        for block in blocks:
            hooks.enter_context(before(block))
            hooks.enter_context(block.module.register_forward_hook(after))
        model.network.base_model(tokens, use_cache=False)
    return passed[0], others
