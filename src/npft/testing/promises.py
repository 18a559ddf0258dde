"""What plugins of every kind promise: options, inputs left alone, no global randomness."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from pydantic.fields import FieldInfo
from torch import Tensor

from npft.artifacts import LanguageModel
from npft.contracts import Plugin


def require(condition: bool, plugin: Plugin, promise: str) -> None:
    """Raise AssertionError with the plugin's class unless the condition holds."""
    if not condition:
        raise AssertionError(f"{type(plugin).__name__} {promise}")


def check_class(plugin: Plugin, contract: type[Plugin]) -> None:
    """Require a name, and options that are validated, frozen, and say all about the plugin."""
    require(isinstance(plugin, contract), plugin, f"is no {contract.__name__}")
    named = isinstance(getattr(plugin, "name", None), str) and bool(plugin.name)
    require(named, plugin, "has no name: give its class a `name: ClassVar[str]`")
    given = plugin.model_dump()
    copy = type(plugin)(**given)
    require(copy == plugin, plugin, "cannot be made again from its own options")
    extra = _takes(plugin, given | {"no_such_option": 1})
    require(not extra, plugin, 'takes options that it does not have: keep extra="forbid"')
    for name, field in type(plugin).model_fields.items():
        require(not _settable(plugin, name), plugin, f"lets {name} be set: keep frozen=True")
        for value in (object(), *_beyond(field)):
            taken = _takes(plugin, given | {name: value})
            shown = "anything at all" if type(value) is object else f"{value!r}"
            require(not taken, plugin, f"takes {shown} for {name}: give it a type and bounds")


def _takes(plugin: Plugin, options: dict[str, Any]) -> bool:
    try:
        type(plugin)(**options)
    except ValidationError:
        return False
    except Exception as error:
        raise AssertionError(
            f"{type(plugin).__name__} fails on wrong options: raise ValueError in validators"
        ) from error
    return True


def _settable(plugin: Plugin, name: str) -> bool:
    try:
        setattr(plugin, name, getattr(plugin, name))
    except ValidationError:
        return False
    return True


def _beyond(field: FieldInfo) -> Iterator[float]:
    """Numbers that the bounds of an option exclude; no real number is infinite or NaN."""
    if "float" in str(field.annotation):
        yield from (float("nan"), float("inf"), float("-inf"))
    for limit in field.metadata:
        for word, step in (("ge", -1), ("gt", 0), ("le", 1), ("lt", 0)):
            if hasattr(limit, word):
                yield getattr(limit, word) + step


@contextmanager
def left_alone(plugin: Plugin, *inputs: Tensor) -> Iterator[None]:
    """Require that the body changes no input, no option and no global random state."""
    before = [tensor.detach().clone() for tensor in inputs]
    options, states = plugin.model_dump(), _random_states()
    yield
    same = all(torch.equal(old, new) for old, new in zip(before, inputs, strict=True))
    require(same, plugin, "changes a tensor that it was given")
    require(options == plugin.model_dump(), plugin, "changes its own options")
    require(
        states == _random_states(), plugin, "touches a global random state: use a torch.Generator"
    )


@contextmanager
def model_left_alone(plugin: Plugin, model: LanguageModel) -> Iterator[None]:
    """Require that the body leaves weights, modes, gradients and hooks of the model as they are."""
    before = {name: value.clone() for name, value in model.network.state_dict().items()}
    flags = _flags(model)
    yield
    after = model.network.state_dict()
    same = before.keys() == after.keys() and all(torch.equal(before[n], after[n]) for n in before)
    require(same, plugin, "changes the weights of the model that it was given")
    require(flags == _flags(model), plugin, "leaves hooks, gradients or another mode on the model")


def same(one: Tensor, other: Tensor) -> bool:
    """Whether two runs agree: bit for bit on the CPU; on CUDA, where sums have no order, nearly."""
    if one.device.type == "cpu":
        return torch.equal(one, other)
    one, other = one.double(), other.double()
    return bool((one - other).norm() <= 1e-3 * one.norm())


def _flags(model: LanguageModel) -> list[tuple[Any, ...]]:
    modules = [
        (name, module.training, len(module._forward_hooks), len(module._forward_pre_hooks))
        for name, module in model.network.named_modules()
    ]
    parameters = [
        (name, parameter.requires_grad, parameter.grad is None)
        for name, parameter in model.network.named_parameters()
    ]
    return [*modules, *parameters]


def _random_states() -> tuple[Any, ...]:
    numpy_state = np.random.get_state(legacy=False)
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    torch_states = [state.tolist() for state in (torch.get_rng_state(), *cuda)]
    return (torch_states, random.getstate(), repr(numpy_state))
