"""What the rest of a training depends on, as tensors and numbers that a file can hold."""

from __future__ import annotations

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
