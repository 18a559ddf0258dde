"""A model as a chain of decoder blocks, and a block's weights on their way to the device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from npft.errors import NpftError


def find_blocks(network: nn.Module) -> tuple[str, nn.ModuleList]:
    """The repeated decoder blocks, the largest ``ModuleList``, and its name.

    Raises:
        NpftError: there is no list of modules.
    """
    lists = [(n, m) for n, m in network.named_modules() if isinstance(m, nn.ModuleList)]
    if not lists:
        raise NpftError("the model has no list of decoder blocks: is it a causal language model?")
    return max(lists, key=lambda item: sum(p.numel() for p in item[1].parameters()))


@dataclass
class Slot:
    """Room on the device for the weights of one block.

    Attributes:
        index: the block whose weights it has, or is receiving.
        edit: what was done to them since they came, None if nothing.
        parameters: one for each of the block's own, frozen.
        ready: recorded once they have come.
    """

    index: int | None = None
    edit: object | None = None
    parameters: list[nn.Parameter] = field(default_factory=list)
    ready: torch.cuda.Event | None = None

    def has(self, index: int, edit: object | None) -> bool:
        """Whether the weights of a block are here, untouched or edited as wanted."""
        return self.index == index and self.edit in (None, edit)

    def make_room(
        self,
        like: list[nn.Parameter],
        room: Callable[[nn.Parameter], Tensor],
        device: torch.device,
    ) -> None:
        """Keep the parameters where they have the shapes of ``like``, else make others."""
        kinds = [[(p.shape, p.dtype) for p in each] for each in (self.parameters, like)]
        if kinds[0] != kinds[1]:
            if self.ready is not None:  # the old ones may still be written to
                torch.cuda.current_stream(device).wait_event(self.ready)
            self.parameters = [nn.Parameter(room(p), requires_grad=False) for p in like]


@dataclass(frozen=True)
class Call:
    """What a block was called with beside the hidden states."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def hidden_of(output: Any) -> Tensor:
    """A block's output, or the first of several."""
    tensor: Tensor = output[0] if isinstance(output, tuple) else output
    return tensor
