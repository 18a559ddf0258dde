"""Which layers of a block share a scale, and what before them can take it out again.

Nothing here knows architectures by name. Layers that read the very same tensor form a group. What
absorbs the group's scale is found by trial: a candidate is divided by random powers of two and
the group multiplied by them, and the block's output must stay what it was. So a residual branch,
a nonlinearity or another reader between the two is noticed, whatever its name.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from npft_awq.blocks import Block, Call

TOLERANCE = 1e-3
"""What absorbing may leave of the scale's effect on the output. Powers of two leave nothing;
Gemma's ``1 + weight`` and large residuals round in float32. A wrong candidate leaves over 0.1."""


@dataclass(frozen=True)
class Absorber:
    """A norm or linear layer whose last outputs are the inputs of a group, channel by channel.

    Attributes:
        name: the module's name inside the block.
        offset: what the module adds to its weight: 1 for Gemma's norms, else 0.
    """

    name: str
    offset: float = 0.0

    def divide(self, block: Block, scales: Tensor) -> None:
        """Divide the last outputs by ``scales (inputs of the group,)``, in place."""
        weight, *bias = (parameter[-len(scales) :] for parameter in _parameters(block, self.name))
        divisor = scales.view(-1, *[1] * (weight.dim() - 1))
        weight.copy_((weight.float() + self.offset) / divisor - self.offset)
        for values in bias:
            values.div_(scales)


@dataclass(frozen=True)
class Group:
    """Layers that read the same tensor, by their names inside the block."""

    layers: tuple[str, ...]
    absorber: Absorber | None

    def multiply(self, block: Block, scales: Tensor) -> None:
        """Multiply the layers' inputs by ``scales (in,)``, in place."""
        for name in self.layers:
            block.layers[name].weight.mul_(scales)


@dataclass
class _Trace:
    """In the order in which they first ran: the readers of each tensor, and all that could absorb.

    ``ran`` holds for each group the candidates that ran before it, latest first.
    """

    readers: dict[tuple[int, int, int], list[str]] = field(default_factory=dict)
    before: dict[str, list[str]] = field(default_factory=dict)
    ran: list[str] = field(default_factory=list)
    alive: list[Tensor] = field(default_factory=list)
    """Inputs are kept so that no two have the same address."""


def find_groups(block: Block, call: Call) -> list[Group]:
    """The groups of a block in the order in which they run; ``call`` is a short one of the block.

    A layer that does not run is in no group.
    """
    trial = block.in_float32()
    call = Call(*tree_map(_as_float32, (call.args, dict(call.kwargs))))
    trace, output = _trace(trial, call)
    groups = []
    for names in trace.readers.values():
        group = Group(tuple(names), None)
        candidates = _candidates(trial, group, trace.before[names[0]])
        found = (c for c in candidates if _absorbs(trial, group, c, call, output))
        groups.append(Group(group.layers, next(found, None)))
    return groups


def _as_float32(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value


def _trace(block: Block, call: Call) -> tuple[_Trace, Tensor]:
    trace = _Trace()

    def hook(name: str) -> Any:
        def record(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            if name in block.layers and name not in trace.before:
                read = args[0]
                trace.alive.append(read)
                where = (read.data_ptr(), read.numel(), read.shape[-1])
                trace.readers.setdefault(where, []).append(name)
                trace.before[name] = trace.ran[::-1]
            trace.ran.append(name)

        return record

    with ExitStack() as hooks:
        for name, module in block.module.named_modules():
            if isinstance(getattr(module, "weight", None), Tensor):
                hooks.enter_context(module.register_forward_pre_hook(hook(name)))
        return trace, call.on(block.module)


def _candidates(block: Block, group: Group, before: list[str]) -> Iterator[Absorber]:
    """What has enough outputs: norms of the group's width, linear layers of at least that."""
    width = block.layers[group.layers[0]].in_features
    for name in before:
        if name in block.layers:
            if block.layers[name].out_features >= width:
                yield Absorber(name)
        elif block.module.get_submodule(name).weight.shape == (width,):
            yield Absorber(name)
            yield Absorber(name, offset=1.0)


def _absorbs(block: Block, group: Group, absorber: Absorber, call: Call, output: Tensor) -> bool:
    """Whether the block's output stays the same if scales go from the absorber to the group."""
    random = torch.Generator().manual_seed(0)
    width = block.layers[group.layers[0]].in_features
    scales = 2.0 ** torch.randint(-1, 2, (width,), generator=random)
    scales = scales.to(output.device)
    with _restored(block, [absorber.name, *group.layers]):
        group.multiply(block, scales)
        effect = (call.on(block.module) - output).norm()
        absorber.divide(block, scales)
        left = (call.on(block.module) - output).norm()
    return bool(effect > 0 and left <= TOLERANCE * effect)


@contextmanager
def _restored(block: Block, names: list[str]) -> Iterator[None]:
    parameters = [p for name in names for p in _parameters(block, name)]
    values = [p.clone() for p in parameters]
    yield
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)


def _parameters(block: Block, name: str) -> list[Tensor]:
    """Views of the weight, ``(out, in)`` or ``(width,)``, and of the bias where there is one."""
    module: Any = block.module.get_submodule(name)
    weight = block.layers[name].weight if name in block.layers else module.weight.detach()
    bias = getattr(module, "bias", None)
    return [weight] if bias is None else [weight, bias.detach()]
