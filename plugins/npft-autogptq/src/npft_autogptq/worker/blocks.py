"""Walk the decoder blocks as AutoGPTQ does: each sees what the quantized ones before it give.

AutoGPTQ keeps, for each architecture, a table of the order in which a block's layers run and of
those that read the same input. Here that is observed on the first batch, which gives the same
groups for its architectures, and serves any other one too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from auto_gptq.quantization import GPTQ
from refusal import Refusal
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


class _Stop(Exception):
    """Ends a forward pass that has shown what was wanted of it."""


class Call:
    """The arguments of one call of a block, with the hidden states apart."""

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.first = args[0] if args else kwargs["hidden_states"]
        self.rest = args[1:]
        self.named = {key: value for key, value in kwargs.items() if key != "hidden_states"}

    def of(self, block: nn.Module) -> Tensor:
        """The hidden states ``(batch, context, width)`` that a block makes of these."""
        out = block(self.first, *self.rest, **self.named)
        return out[0] if isinstance(out, tuple) else out


class Blocks:
    """The blocks of a network, of which some layers are to be quantized."""

    def __init__(self, network: nn.Module, layers: list[str], batches: list[Tensor]) -> None:
        """Record what each batch gives to the first block.

        Args:
            network: a causal language model.
            layers: names of ``nn.Linear`` and ``Conv1D`` in its blocks.
            batches: token ids, each ``(batch, context)``.

        Raises:
            Refusal: the network has no layer of one of these names.
        """
        modules = dict(network.named_modules())
        for name in layers:
            if not isinstance(modules.get(name), (nn.Linear, Conv1D)):
                raise Refusal(
                    f"AutoGPTQ's transformers has no layer {name} in this model: use gptq"
                )
        self._network = network
        self._layers = [(name, modules[name]) for name in layers]
        paths = [re.fullmatch(r"(.+?\.\d+)\..+", name) for name in layers]
        self._blocks = {path[1]: modules[path[1]] for path in paths if path}
        first = next(iter(self._blocks.values()))
        self._calls = [self._arguments(first, batch) for batch in batches]
        self._block = first
        self._repeated: set[str] = set()

    def quantizable(self) -> Iterator[list[str]]:
        """Names of layers that read the same input, in the order in which they run.

        Each group is to be quantized in place before the next is asked for.
        """
        for path, block in self._blocks.items():
            self._block = block
            inside = {name: m for name, m in self._layers if name.startswith(path + ".")}
            yield from self._by_input(inside)
            for call in self._calls:
                call.first = call.of(block)

    def hessian(self, names: list[str]) -> tuple[Tensor, int]:
        """``2 X X^T / samples (in, in)`` of the input that these layers share, and the samples.

        There are no samples where no batch reaches the layers.
        """
        module = self._network.get_submodule(names[0])
        width = module.weight.shape[0 if isinstance(module, Conv1D) else 1]
        # AutoGPTQ's accumulator looks at no more of a layer than its kind and its inputs.
        solver = GPTQ(nn.Linear(width, 1, bias=False, device=module.weight.device))
        repeated = names[0] in self._repeated

        def add(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            solver.add_batch(inputs[0].data, None)
            if not repeated:
                raise _Stop

        with _hooks({names[0]: module}, lambda _: add):
            for call in self._calls:
                _until_stopped(lambda call=call: call.of(self._block))
        return solver.H, solver.nsamples

    def _by_input(self, inside: dict[str, nn.Module]) -> list[list[str]]:
        """Groups of layers, in the order in which the first batch reaches them.

        What it does not reach, as a router may decide, comes last and one by one.
        """
        seen: list[tuple[str, Tensor]] = []

        def note(name: str) -> Any:
            return lambda _, inputs: seen.append((name, inputs[0]))

        with _hooks(inside, note):
            self._calls[0].of(self._block)
        groups: dict[int, list[str]] = {}
        reached = set()
        for name, given in seen:
            if name in reached:
                self._repeated.add(name)
            else:
                groups.setdefault(id(given), []).append(name)
            reached.add(name)
        return [*groups.values(), *([name] for name in inside if name not in reached)]

    def _arguments(self, first: nn.Module, batch: Tensor) -> Call:
        """What the network gives to its first block."""
        calls: list[Call] = []

        def take(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            calls.append(Call(args, kwargs))
            raise _Stop

        handle = first.register_forward_pre_hook(take, with_kwargs=True)
        _until_stopped(lambda: self._network(input_ids=batch, use_cache=False))
        handle.remove()
        return calls[0]


@contextmanager
def _hooks(modules: dict[str, nn.Module], hook: Callable[[str], Any]) -> Iterator[None]:
    handles = [m.register_forward_pre_hook(hook(name)) for name, m in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _until_stopped(forward: Callable[[], object]) -> None:
    with suppress(_Stop):
        forward()
