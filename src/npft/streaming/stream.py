"""An ordinary network whose decoder blocks come to the device when they are called."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from npft.errors import NpftError
from npft.streaming.blocks import Slot, find_blocks
from npft.streaming.resting import InHostMemory, Resting

HELD = 2
"""Blocks on the device at most: the one at work, and the one that comes next."""

Edit = Callable[[int], None]
Instead = Callable[[int, tuple[Any, ...], dict[str, Any]], Any]


class Stream:
    """Keeps the blocks' weights elsewhere and brings one block to the device for each call.

    They rest in host memory, unless another :class:`Resting` is given. Everything else of the
    network is moved to the device. While a block runs the next is brought beside it. With
    gradients, a block keeps its inputs alone and is run again, from weights that are brought again,
    when the backward pass reaches it. Between calls every parameter is where it rests, so that
    what is changed there lasts.

    Parameters that are added later, such as an adapter's, are not streamed.
    """

    def __init__(
        self, network: nn.Module, device: torch.device, resting: Resting | None = None
    ) -> None:
        self.device = device
        self.prefix, blocks = find_blocks(network)
        self.blocks = list(blocks)
        self.loads = 0
        """How many times a block's weights were brought to the device."""
        self._rest: Resting = InHostMemory(device) if resting is None else resting
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
            ahead: 1 or -1 to begin bringing the next or the previous block as well.
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
    def reading(self, index: int) -> Iterator[None]:
        """Within this scope a block's parameters can be read, on the device or where they rest."""
        if self._rest.readable:
            yield
            return
        with self.on_device(index):
            yield

    def whole(self, parameter: Tensor) -> Tensor:
        """All values of any parameter or buffer of the network."""
        self._catch_up()
        return self._rest.whole(parameter)

    def settle(self) -> None:
        """From here on the main process is alone, with the weights in its own host memory.

        The others, if there are any, are left without: all of them must call this.
        """
        if self._rest.readable:
            return
        self._catch_up()
        before, self._rest = self._rest, InHostMemory(self.device)
        self._slots = [Slot() for _ in range(HELD)]
        settled: dict[nn.Parameter, nn.Parameter] = {}
        for index in range(len(self.blocks)):
            resting = self._resting(index)
            for parameter in resting:
                if parameter not in settled:
                    settled[parameter] = self._settled(parameter, before)
            self._put(index, [settled[parameter] for parameter in resting])

    def _catch_up(self) -> None:
        """Have the device's current stream wait for what is still being brought."""
        for slot in self._slots:
            if slot.ready is not None:
                torch.cuda.current_stream(self.device).wait_event(slot.ready)

    def _settled(self, parameter: nn.Parameter, before: Resting) -> nn.Parameter:
        values = before.leave(parameter)
        if values is None:
            values = torch.empty(parameter.shape, dtype=parameter.dtype, device="meta")
        else:
            values = values.cpu()
        kept = nn.Parameter(values, requires_grad=False)
        return kept if values.is_meta else self._rest.keep(kept)

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
        """Within this scope the network is an ordinary one, with its blocks in host memory.

        Raises:
            NpftError: they are not there.
        """
        if not self._rest.readable:
            raise NpftError(
                "a model that is sharded over several processes cannot be copied: use --memory "
                "streamed or resident"
            )
        for block in self.blocks:
            del block.forward
        try:
            yield
        finally:
            self._attach()

    def _place(self, network: nn.Module) -> None:
        kept: dict[nn.Parameter, nn.Parameter] = {}  # a parameter may be in several modules
        for index in range(len(self.blocks)):
            given = self._resting(index)
            for parameter in given:
                if parameter not in kept:
                    kept[parameter] = self._rest.keep(parameter)
            self._put(index, [kept[parameter] for parameter in given])
        here = {parameter: parameter for parameter in kept.values()}
        for module in network.modules():
            for name, other in module._parameters.items():
                if other is None:
                    continue
                if other not in here:
                    here[other] = self._on_device(other)
                module._parameters[name] = here[other]
        for module in network.modules():
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = buffer.to(self.device)

    def _on_device(self, parameter: nn.Parameter) -> nn.Parameter:
        """A parameter that is not streamed."""
        whole = self._rest.whole(parameter)
        if whole is not parameter:
            return nn.Parameter(whole, requires_grad=False)
        parameter.data = parameter.data.to(self.device)
        return parameter

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
        """Begin to bring a block into the slot that was used the longest time ago."""
        slot, resting = self._slots[0], self._resting(index)
        slot.make_room(resting, self._rest.room, self.device)
        slot.index, slot.edit = index, None
        self.loads += 1
        if self._copies is None:
            self._bring(resting, slot)
            return slot
        # What the slot held was last used by work that is already in the stream's queue: blocks
        # are left in order, forward and backward.
        self._copies.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._copies):
            self._bring(resting, slot)
            slot.ready = torch.cuda.Event()
            slot.ready.record()
        return slot

    def _bring(self, resting: list[nn.Parameter], slot: Slot) -> None:
        for parameter, here in zip(resting, slot.parameters, strict=True):
            self._rest.bring(parameter, here.data)


def _places(block: nn.Module) -> list[tuple[nn.Module, str]]:
    """Where the parameters of a block are: modules, and names in them."""
    return [
        (module, name)
        for module in block.modules()
        for name, parameter in module._parameters.items()
        if parameter is not None
    ]
