"""An ordinary network whose decoder blocks come to the device when they are called."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from npft.streaming.blocks import Slot, find_blocks

HELD = 2
"""Blocks on the device at most: the one at work, and the one that comes next."""

Edit = Callable[[int], None]
Instead = Callable[[int, tuple[Any, ...], dict[str, Any]], Any]


class Stream:
    """Keeps the blocks' weights in host memory and brings one to the device for each call.

    Everything else of the network is moved to the device. While a block runs the next is copied
    beside it. With gradients, a block keeps its inputs alone and is run again, from weights that
    are brought again, when the backward pass reaches it. Between calls every parameter is in host
    memory, so that what is changed there lasts.

    Parameters that are added later, such as an adapter's, are not streamed.
    """

    def __init__(self, network: nn.Module, device: torch.device) -> None:
        self.device = device
        self.prefix, blocks = find_blocks(network)
        self.blocks = list(blocks)
        self.loads = 0
        """How many times a block's weights were copied to the device."""
        self._places = [_places(block) for block in self.blocks]
        self._forwards: list[Callable[..., Any]] = []
        self._slots = [Slot() for _ in range(HELD)]  # the last used one comes last
        self._edit: Edit | None = None
        self._instead: Instead | None = None
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._place(network)
        self._attach()

    def index_of(self, layer: str) -> int:
        """The block that a layer of this name is in."""
        return int(layer.removeprefix(f"{self.prefix}.").partition(".")[0])

    def call(self, index: int, *args: Any, **kwargs: Any) -> Any:
        """Run a block whose weights are :meth:`on_device`."""
        return self._forwards[index](*args, **kwargs)

    @contextmanager
    def on_device(self, index: int, ahead: int = 0) -> Iterator[None]:
        """Within this scope a block's parameters are on the device.

        Args:
            index: of the block.
            ahead: 1 or -1 to begin copying the next or the previous block as well.
        """
        slot, resting = self._fetch(index), self._resting(index)
        self._put(index, slot.parameters)
        try:
            if self._edit is not None and slot.edit is not self._edit:
                slot.edit = self._edit
                with torch.no_grad():
                    self._edit(index)
            self._prefetch(index + ahead)
            yield
        finally:
            self._put(index, resting)

    @contextmanager
    def editing(self, edit: Edit) -> Iterator[None]:
        """Within this scope ``edit(index)`` changes the weights of each block that comes.

        It is called with the block's parameters on the device, each time they are brought, and
        what it does there is gone when the scope ends.
        """
        self._edit = edit
        try:
            yield
        finally:
            self._edit = None
            for slot in self._slots:
                if slot.edit is edit:
                    slot.index = slot.edit = None

    @contextmanager
    def replaced(self, instead: Instead) -> Iterator[None]:
        """Within this scope ``instead(index, args, kwargs)`` is what each block does."""
        self._instead = instead
        try:
            yield
        finally:
            self._instead = None

    @contextmanager
    def detached(self) -> Iterator[None]:
        """Within this scope the network is an ordinary one, with its blocks in host memory."""
        for block in self.blocks:
            del block.forward
        try:
            yield
        finally:
            self._attach()

    def _place(self, network: nn.Module) -> None:
        pinned = self.device.type == "cuda"
        streamed = {id(p) for index in range(len(self.blocks)) for p in self._resting(index)}
        for parameter in network.parameters():
            if id(parameter) not in streamed:
                parameter.data = parameter.data.to(self.device)
            elif parameter.device.type != "cpu" or (pinned and not parameter.is_pinned()):
                here = parameter.data.cpu()
                parameter.data = here.pin_memory() if pinned else here
        for module in network.modules():
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = buffer.to(self.device)

    def _resting(self, index: int) -> list[nn.Parameter]:
        return [module._parameters[name] for module, name in self._places[index]]  # type: ignore[misc]

    def _put(self, index: int, parameters: list[nn.Parameter]) -> None:
        # The parameters themselves, not their data: what autograd keeps of a frozen parameter for
        # the backward pass is the parameter, and it would find other data in it.
        for (module, name), parameter in zip(self._places[index], parameters, strict=True):
            module._parameters[name] = parameter

    def _attach(self) -> None:
        self._forwards = [block.forward for block in self.blocks]
        for index, block in enumerate(self.blocks):
            block.forward = self._streamed(index)

    def _streamed(self, index: int) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            if self._instead is not None:
                return self._instead(index, args, kwargs)
            towards = 1

            def run(*args: Any, **kwargs: Any) -> Any:
                nonlocal towards
                with self.on_device(index, towards):
                    towards = -1  # if it is run again, it is on the way back
                    return self.call(index, *args, **kwargs)

            if not torch.is_grad_enabled():
                return run(*args, **kwargs)
            return checkpoint(run, *args, use_reentrant=False, **kwargs)

        return forward

    def _fetch(self, index: int) -> Slot:
        slot = self._having(index) or self._copy(index)
        self._slots.remove(slot)
        self._slots.append(slot)
        if slot.ready is not None:
            torch.cuda.current_stream(self.device).wait_event(slot.ready)
        return slot

    def _prefetch(self, index: int) -> None:
        if 0 <= index < len(self.blocks) and self._having(index) is None:
            self._copy(index)

    def _having(self, index: int) -> Slot | None:
        return next((slot for slot in self._slots if slot.has(index, self._edit)), None)

    def _copy(self, index: int) -> Slot:
        """Begin to copy a block into the slot that was used the longest time ago."""
        slot, resting = self._slots[0], self._resting(index)
        slot.make_room(resting, self.device)
        slot.index, slot.edit = index, None
        self.loads += 1
        if self._copies is None:
            _copy_all(slot.parameters, resting)
            return slot
        # What the slot held was last used by work that is already in the stream's queue: blocks
        # are left in order, forward and backward.
        self._copies.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._copies):
            _copy_all(slot.parameters, resting)
            slot.ready = torch.cuda.Event()
            slot.ready.record()
        return slot


def _places(block: nn.Module) -> list[tuple[nn.Module, str]]:
    """Where the parameters of a block are: modules, and names in them."""
    return [
        (module, name)
        for module in block.modules()
        for name, parameter in module._parameters.items()
        if parameter is not None
    ]


def _copy_all(to: list[nn.Parameter], source: list[nn.Parameter]) -> None:
    for mine, theirs in zip(to, source, strict=True):
        mine.data.copy_(theirs.data, non_blocking=True)
