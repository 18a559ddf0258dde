"""What the rest of a training depends on, as tensors and numbers that a file can hold."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer


@dataclass(frozen=True)
class State:
    """A training after some whole epochs.

    Attributes:
        tensors: adapter, optimizer, generators and what the noise remembers, on any device.
        numbers: the rest, ready for JSON, whose floats come back bit for bit.
    """

    tensors: dict[str, Tensor]
    numbers: dict[str, Any]


class Checkpoint(Protocol):
    """Where a training keeps its state, so that an interrupted one goes on after its last epoch."""

    def load(self) -> State | None:
        """What was kept last of this very training, if anything."""
        ...

    def save(self, state: State) -> None:
        """Replace what was kept, whole or not at all."""
        ...


def below(name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with ``name.`` put before each key."""
    return {f"{name}.{key}": value for key, value in tensors.items()}


def part(name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What :func:`below` put under ``name``."""
    prefix = f"{name}."
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def of_optimizer(optimizer: Optimizer) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Its moments by ``PARAMETER.NAME``, and its groups of parameters."""
    whole = optimizer.state_dict()
    moments = {
        f"{index}.{name}": value
        for index, found in whole["state"].items()
        for name, value in found.items()
    }
    return moments, whole["param_groups"]


def load_optimizer(
    optimizer: Optimizer, moments: Mapping[str, Tensor], groups: list[dict[str, Any]]
) -> None:
    """Put back what :func:`of_optimizer` took."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in moments.items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": groups})


_MOMENTS = ("step", "exp_avg", "exp_avg_sq")
"""What AdamW has of each parameter that it has moved."""


def check_like(
    parameters: Mapping[str, Tensor], weights: Mapping[str, Tensor], moments: Mapping[str, Tensor]
) -> None:
    """Refuse weights and moments of other parameters, or that are not finite.

    Raises:
        ValueError: there are such.
    """
    if weights.keys() != parameters.keys():
        raise ValueError("its parameters are others")
    shapes = [parameter.shape for parameter in parameters.values()]
    known = {key.partition(".")[0] for key in moments}
    if moments.keys() != {f"{index}.{name}" for index in known for name in _MOMENTS}:
        raise ValueError("its moments are not whole")
    for key, value in (*weights.items(), *moments.items()):
        if key in parameters:
            shape = parameters[key].shape
        else:
            index, _, name = key.partition(".")
            shape = torch.Size() if name == "step" else shapes[int(index)]
        if value.shape != shape or not bool(value.isfinite().all()):
            raise ValueError(f"{key} has another shape, or is not finite")


def check_form(own: Any, kept: Any) -> None:
    """Refuse JSON of another form than one's own: other keys, lengths or kinds of values.

    Raises:
        ValueError: there are such.
    """
    if isinstance(own, dict) and isinstance(kept, dict) and own.keys() == kept.keys():
        for key, value in own.items():
            check_form(value, kept[key])
    elif isinstance(own, list) and isinstance(kept, list) and len(own) == len(kept):
        for one, other in zip(own, kept, strict=True):
            check_form(one, other)
    elif isinstance(own, (dict, list)) or _kind(own) is not _kind(kept):
        raise ValueError("its settings are others")


def _kind(value: Any) -> object:
    """Whole numbers and floats are of one kind, and what is not finite of none."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float if math.isfinite(value) else value
    return type(value)


def of_global_random() -> dict[str, Tensor]:
    """The states of torch's global generators, those of dropout, by device."""
    found = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_initialized():
        for index, state in enumerate(torch.cuda.get_rng_state_all()):
            found[f"cuda:{index}"] = state
    return found


def load_global_random(states: Mapping[str, Tensor]) -> None:
    """Put back what :func:`of_global_random` took."""
    for device, state in states.items():
        if device == "cpu":
            torch.set_rng_state(state)
        else:
            torch.cuda.set_rng_state(state, device)
