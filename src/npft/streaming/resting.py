"""Where the blocks' weights rest while they are not on the device whole, and how they come."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn


class Resting(Protocol):
    """A place for the parameters of all blocks.

    Attributes:
        readable: whether parameters are whole there.
    """

    readable: bool

    def keep(self, parameter: nn.Parameter) -> nn.Parameter:
        """What a module has of a parameter while its block is not on the device."""
        ...

    def room(self, kept: Tensor) -> Tensor:
        """Room on the device for the whole of it, of its shape."""
        ...

    def bring(self, kept: Tensor, room: Tensor) -> None:
        """Begin to fill the room, in the device's current stream."""
        ...

    def whole(self, kept: Tensor) -> Tensor:
        """All of its values, wherever they are."""
        ...

    def leave(self, kept: nn.Parameter) -> Tensor | None:
        """All of its values, for the process that goes on alone; None for the others."""
        ...


class InHostMemory:
    """Each process has all of the weights, pinned where they go to a GPU."""

    readable = True

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pinned = device.type == "cuda"

    def keep(self, parameter: nn.Parameter) -> nn.Parameter:
        if parameter.device.type != "cpu" or (self._pinned and not parameter.is_pinned()):
            here = parameter.data.cpu()
            parameter.data = here.pin_memory() if self._pinned else here
        return parameter

    def room(self, kept: Tensor) -> Tensor:
        return torch.empty(kept.shape, dtype=kept.dtype, device=self._device)

    def bring(self, kept: Tensor, room: Tensor) -> None:
        room.copy_(kept.detach(), non_blocking=True)

    def whole(self, kept: Tensor) -> Tensor:
        return kept

    def leave(self, kept: nn.Parameter) -> Tensor | None:
        return kept
