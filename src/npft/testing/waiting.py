"""Whether the host ever waits for the device, which on a CPU only looks like it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from npft.contracts import Plugin
from npft.waiting import refusing_to_wait

_aten = torch.ops.aten
_WAITING = {
    _aten._local_scalar_dense,
    _aten.nonzero,
    _aten.masked_select,
    _aten.unique_dim,
    _aten._unique2,
    _aten.unique_consecutive,
    _aten.bincount,
}
"""Operations that bring a value, or the size of their result, to the host."""


class Waits(TorchDispatchMode):
    """Notes the operations for which the host would wait if the tensors were on a GPU.

    Attributes:
        found: their names, in order.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[str] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if function.overloadpacket in _WAITING or _finds_places(function, args, kwargs):
            self.found.append(str(function.overloadpacket))
        return function(*args, **kwargs)


def _finds_places(function: Any, args: Any, kwargs: Any) -> bool:
    """Whether it depends on values how many places of a tensor are meant."""
    if function is _aten.repeat_interleave.Tensor:
        return kwargs.get("output_size") is None
    if function.overloadpacket in (_aten.index_put, _aten.index_put_) and args[2].numel() == 1:
        return False  # fills where the mask says so
    indexes = function.overloadpacket in (_aten.index, _aten.index_put, _aten.index_put_)
    return indexes and any(
        isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in args[1]
    )


@contextmanager
def never_waiting(plugin: Plugin, promise: str) -> Iterator[None]:
    """Require that in this scope nothing waits, as the plugin's class says by ``promise``.

    Raises:
        AssertionError: something does; it is named.
    """
    wrong = f"{type(plugin).__name__} says {promise} = True, and waits for the device in"
    with Waits() as waits, _told_by_cuda(wrong):
        yield
    if waits.found:
        raise AssertionError(f"{wrong} {waits.found[0]}: compute with tensors alone")


@contextmanager
def _told_by_cuda(wrong: str) -> Iterator[None]:
    """Where there is CUDA it sees waits that no operation's name tells."""
    if not torch.cuda.is_initialized():
        yield
        return
    try:
        with refusing_to_wait():
            yield
    except RuntimeError as error:
        if "synchroniz" not in str(error):
            raise
        raise AssertionError(f"{wrong} an operation that copies: {error}") from error
