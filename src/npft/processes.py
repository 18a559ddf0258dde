"""The processes of one run, where a launcher started several: who does which windows, and sums.

``accelerate launch`` and ``torchrun`` start the same command several times. All of these processes
go the same way up to the tuned adapter, each with the whole model or a shard of it and its share of
the windows, and add up what they find. One of them, the main one, decides, writes and speaks.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from npft.errors import NpftError

T = TypeVar("T")

PATIENCE = timedelta(days=7)
"""How long to wait for another process, which may be writing; a launcher ends all if one fails."""

GRACE = 5.0
"""Seconds that a process that failed waits for the main one to fail as well, and to tell why."""

_FAILED = "npft/failed"

NOT_ALONE = (
    "--memory sharded spreads the model over several processes: start them with accelerate launch "
    "--multi_gpu --num_processes N -m npft …, or use --memory auto"
)

AT_ONCE = 2**26
"""Values that are summed in one go, in float32 256 MiB of them."""


class Processes:
    """This process alone, as it is without a launcher: nothing is shared, nothing costs anything.

    Attributes:
        rank: number of this process, 0 for the main one.
        count: how many there are.
        started: how many there were at first.
        here: how many of them are on this machine.
    """

    rank = 0
    count = 1
    started = 1
    here = 1

    @property
    def main(self) -> bool:
        """Whether this is the process that decides, writes and speaks."""
        return self.rank == 0

    def device(self, asked: str) -> str:
        """The device to work on where ``asked`` is the configuration's."""
        return asked

    def share(self, windows: Tensor) -> Tensor:
        """The windows that are this process's, all of them in their order; maybe none."""
        return windows

    def part(self, batch: Tensor, *, divide: bool) -> tuple[Tensor, float]:
        """What of one step's windows ``(batch, context)`` this process does, and its weight.

        The weights of all processes add up to 1. Without ``divide`` each does all of them.
        """
        return batch, 1.0

    def mean(self, loss: Tensor, weight: float) -> Tensor:
        """The weighted mean of the processes' scalars ``loss``.

        Its gradient is what this process's own contributes: the gradients add up to the whole.
        """
        return loss

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over the processes, which is taken in float32."""

    def mesh(self, device: torch.device) -> DeviceMesh:
        """All processes' devices in their order, for weights that are spread over them.

        Raises:
            NpftError: there is one process alone.
        """
        raise NpftError(NOT_ALONE)

    def gather(self, whole: Tensor, mine: Tensor) -> None:
        """Fill ``whole (count * rows, ...)`` with every process's ``mine (rows, ...)``.

        On a GPU it is done in the current stream, and may be beside :meth:`add`.
        """
        raise NpftError(NOT_ALONE)

    def decided(self, decide: Callable[[], T]) -> T:
        """What the main process decides; the others wait for it, however long it takes."""
        return decide()

    def least(self, values: Sequence[int]) -> list[int]:
        """The smallest of the processes' numbers, each by itself."""
        return list(values)

    def agree(self, found: Mapping[str, Any]) -> None:
        """Check that every process has found the same.

        Raises:
            NpftError: this one has not.
        """

    def disband(self) -> None:
        """All that is shared is done: from here on each process is alone."""

    def speaks(self) -> bool:
        """Whether it is up to this process, which failed, to tell why: one of all says yes."""
        return True


ALONE = Processes()


class Launched(Processes):
    """One of several processes that work together by torch.distributed."""

    def __init__(self, store: Store, rank: int, count: int) -> None:
        self.rank, self.count, self.started = rank, count, count
        self.here = int(os.environ.get("LOCAL_WORLD_SIZE", count))
        self._local = int(os.environ["LOCAL_RANK"])
        self._store = store
        self._mesh: DeviceMesh | None = None

    def device(self, asked: str) -> str:
        """This process's own GPU for ``auto`` and ``cuda``.

        Raises:
            NpftError: there are fewer GPUs than processes, or one was asked for by number.
        """
        if asked not in ("auto", "cuda"):
            if asked.startswith("cuda:"):
                raise NpftError(
                    f"device {asked!r} was asked for by {self.count} processes, which need one "
                    "each: use --device auto"
                )
            return asked
        if not torch.cuda.is_available():
            return "cpu" if asked == "auto" else asked
        if self._local >= torch.cuda.device_count():
            raise NpftError(
                f"{self.here} processes were launched on a machine with "
                f"{torch.cuda.device_count()} GPUs: launch one for each GPU, or use --device cpu"
            )
        return f"cuda:{self._local}"

    def share(self, windows: Tensor) -> Tensor:
        return windows.tensor_split(self.count)[self.rank]

    def part(self, batch: Tensor, *, divide: bool) -> tuple[Tensor, float]:
        if not divide:
            return batch, 1 / self.count
        mine = self.share(batch)
        # Without a window of its own it still takes part, with one that does not count.
        return (mine, len(mine) / len(batch)) if len(mine) else (batch[:1], 0.0)

    def mean(self, loss: Tensor, weight: float) -> Tensor:
        if self.count == 1:
            return loss
        whole: Tensor = _Mean.apply(loss, weight, self)  # type: ignore[no-untyped-call]
        return whole

    def add(self, tensors: Sequence[Tensor]) -> None:
        if self.count == 1:
            return
        for some in _bunches([tensor.detach() for tensor in tensors]):
            if len(some) == 1 and some[0].dtype == torch.float32 and some[0].is_contiguous():
                with _together():
                    torch.distributed.all_reduce(some[0])
                continue
            flat = torch.cat([tensor.float().reshape(-1) for tensor in some])
            with _together():
                torch.distributed.all_reduce(flat)
            for tensor, summed in zip(some, flat.split([t.numel() for t in some]), strict=True):
                tensor.copy_(summed.view(tensor.shape))

    def mesh(self, device: torch.device) -> DeviceMesh:
        if self.count == 1:
            return super().mesh(device)
        if self._mesh is None:
            # A group of its own: gathers begin early, and would be in the way of sums.
            with _together():
                group = torch.distributed.new_group(timeout=PATIENCE)
            self._mesh = DeviceMesh.from_group(group, device.type)
        return self._mesh

    def gather(self, whole: Tensor, mine: Tensor) -> None:
        group = self.mesh(whole.device).get_group()
        all_bytes, my_bytes = (tensor.view(-1).view(torch.uint8) for tensor in (whole, mine))
        with _together():
            _all_gather(all_bytes, my_bytes, group=group)

    def decided(self, decide: Callable[[], T]) -> T:
        if self.count == 1:
            return decide()
        told = [decide() if self.main else None]
        with _together():
            torch.distributed.broadcast_object_list(told, device=torch.device("cpu"))
        return told[0]  # type: ignore[return-value]

    def least(self, values: Sequence[int]) -> list[int]:
        if self.count == 1:
            return list(values)
        numbers = torch.tensor(values, dtype=torch.int64)
        with _together():
            torch.distributed.all_reduce(numbers, torch.distributed.ReduceOp.MIN)
        return [int(number) for number in numbers]

    def agree(self, found: Mapping[str, Any]) -> None:
        wanted = self.decided(lambda: found)
        for name, value in found.items():
            if value != wanted[name]:
                raise NpftError(
                    f"process {self.rank} has another {name} ({value}) than the main process "
                    f"({wanted[name]}): launch on machines of one kind with the same files"
                )

    def disband(self) -> None:
        if self.count == 1:
            return
        self.decided(lambda: None)
        self.count = self.here = 1
        self._mesh = None
        torch.distributed.destroy_process_group()

    def speaks(self) -> bool:
        if self.count == 1:
            return self.main
        until = time.monotonic() + (0 if self.main else GRACE)
        try:
            while time.monotonic() < until and not self._store.check([_FAILED]):
                time.sleep(0.05)
            first: bool = self._store.add(_FAILED, 1) == 1
        except RuntimeError:  # without the launcher there is nobody to agree with
            return self.main
        if not first:
            time.sleep(GRACE)  # the launcher ends all as soon as the one that speaks has ended
        return first


# What torch 2.13 calls all_gather_single.
_all_gather = getattr(torch.distributed, "all_gather_single", None) or (
    torch.distributed.all_gather_into_tensor
)


def launched() -> bool:
    """Whether a launcher started this process as one of several."""
    return "LOCAL_RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextmanager
def join() -> Iterator[Processes]:
    """Meet the other processes, by accelerate: NCCL between GPUs, Gloo between CPUs.

    Without a launcher this process is :data:`ALONE`.
    """
    if not launched():
        yield ALONE
        return
    from accelerate import PartialState

    rank, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    with _together():
        store, _, _ = next(rendezvous("env://", rank, count, timeout=PATIENCE))
        gpu = torch.cuda.is_available()
        PartialState(
            cpu=not gpu,
            backend="cpu:gloo,cuda:nccl" if gpu else "gloo",
            **({"rank": rank, "world_size": count} if gpu else {}),
            store=PrefixStore("group", store),
            timeout=PATIENCE,
        )
    yield Launched(store, rank, count)


class _Mean(torch.autograd.Function):
    """The weighted sum over the processes forward, this process's weight backward."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, weight: float, processes: Launched) -> Tensor:
        ctx.weight = weight
        whole = loss.detach() * weight
        processes.add([whole])
        return whole

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad * ctx.weight, None, None


def _bunches(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """The tensors in lists of at most :data:`AT_ONCE` values, or of one tensor."""
    bunch: list[Tensor] = []
    for tensor in tensors:
        if bunch and sum(t.numel() for t in bunch) + tensor.numel() > AT_ONCE:
            yield bunch
            bunch = []
        bunch.append(tensor)
    if bunch:
        yield bunch


@contextmanager
def _together() -> Iterator[None]:
    """A scope in which the processes need each other.

    Raises:
        NpftError: another one is gone.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise NpftError(
            "another process of this run has ended before its work was done: see what it said, "
            "and run the same command again"
        ) from error
