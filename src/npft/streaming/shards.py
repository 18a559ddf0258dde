"""Weights that are spread over the devices of several processes, and gathered block by block.

A shard is what FSDP2 makes of a parameter: a ``DTensor`` whose rows (dimension 0) are split over
the processes, as torch.chunk splits them. ``fully_shard`` itself is not used: its hooks would
gather a block anew, and without its noise, whenever the block runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard
from torch.nn.modules.module import register_module_parameter_registration_hook

from npft.processes import Processes


class OverProcesses:
    """Each process has the rows that are its own of every matrix, on its device.

    Biases and the weights of normalisations are too small to share: every process has them all.
    All processes must bring the same parameters in the same order.
    """

    readable = False

    def __init__(self, device: torch.device, processes: Processes) -> None:
        self._device = device
        self._processes = processes
        self._mesh = processes.mesh(device)

    def keep(self, parameter: nn.Parameter) -> nn.Parameter:
        if isinstance(parameter, DTensor):
            return parameter
        if parameter.dim() < 2:
            parameter.data = parameter.data.to(self._device)
            return parameter
        shape, rows = parameter.shape, self._rows(parameter)
        first = min(rows * self._processes.rank, len(parameter))
        mine = parameter.data[first : first + rows]
        # As many rows in every process, which a gather needs, though the last ones may be unused.
        padded = torch.zeros((rows, *shape[1:]), dtype=parameter.dtype, device=self._device)
        padded[: len(mine)].copy_(mine)
        shard = DTensor.from_local(
            padded[: len(mine)], self._mesh, [Shard(0)],
            run_check=False, shape=shape, stride=_strides(shape),
        )  # fmt: skip
        kept = nn.Parameter(shard, requires_grad=False)
        vars(kept).update(vars(parameter))  # transformers marks what it has loaded
        return kept

    def room(self, kept: Tensor) -> Tensor:
        if not isinstance(kept, DTensor):
            return torch.empty(kept.shape, dtype=kept.dtype, device=self._device)
        rows = self._rows(kept) * self._processes.count
        whole = torch.empty((rows, *kept.shape[1:]), dtype=kept.dtype, device=self._device)
        return whole[: len(kept)]

    def bring(self, kept: Tensor, room: Tensor) -> None:
        if not isinstance(kept, DTensor):
            room.copy_(kept.detach())
            return
        rows = self._rows(kept)
        self._processes.gather(
            _with_padding(room, rows * self._processes.count),
            _with_padding(kept.to_local(), rows),
        )

    def whole(self, kept: Tensor) -> Tensor:
        if not isinstance(kept, DTensor):
            return kept
        with torch.no_grad():
            room = self.room(kept)
            self.bring(kept, room)
        return room

    def leave(self, kept: nn.Parameter) -> Tensor | None:
        whole = self.whole(kept)
        return whole if self._processes.main else None

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Within this scope a module that is given a matrix gets this process's shard of it.

        So a model is read parameter by parameter, and no process ever has the whole of it.
        """

        def shard(_module: nn.Module, _name: str, parameter: nn.Parameter | None) -> object:
            if parameter is None or parameter.is_meta:
                return None
            return self.keep(parameter)

        handle = register_module_parameter_registration_hook(shard)  # type: ignore[arg-type]
        try:
            yield
        finally:
            handle.remove()

    def _rows(self, parameter: Tensor) -> int:
        """Rows of a shard, padding included."""
        return -(-len(parameter) // self._processes.count)


def own(parameter: Tensor) -> Tensor:
    """What this process has of a parameter: all, or the rows of its shard."""
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter


def _with_padding(tensor: Tensor, rows: int) -> Tensor:
    """The whole memory of a tensor that is the first rows of it."""
    shape = (rows, *tensor.shape[1:])
    return tensor.detach().as_strided(shape, _strides(shape))


def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Those of a contiguous tensor."""
    return torch.empty(shape, device="meta").stride()
