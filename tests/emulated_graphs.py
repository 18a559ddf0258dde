"""CUDA graphs on the CPU: what a scope computes is noted operation by operation, and done again.

As on a GPU, recording itself changes no tensor that was there before, a replay reads and writes
the memory that was recorded, and an operation that waits for the device breaks a recording off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Graph:
    """In the place of ``torch.cuda.CUDAGraph``."""

    replays = 0

    def __init__(self) -> None:
        self.calls: list[tuple[Callable[..., Any], Any, Any, list[Tensor]]] = []

    def replay(self) -> None:
        """Do all of it again, with results where they were."""
        Graph.replays += 1
        with torch.no_grad():
            for function, args, kwargs, results in self.calls:
                again = tensors(function(*args, **kwargs))
                for old, new in zip(results, again, strict=True):
                    if place(old) != place(new):  # neither a view nor in place
                        old.copy_(new)


class _Noting(TorchDispatchMode):
    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self._graph = graph
        self._own: set[int] = set()
        self._before: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        kwargs = kwargs or {}
        refuse_waiting(function)
        if function._schema.is_mutable and place(args[0]) not in self._own:
            self._before.setdefault(place(args[0]), (args[0], args[0].clone()))
        result = function(*args, **kwargs)
        given = {place(tensor) for tensor in tensors((args, kwargs))}
        self._own |= {place(tensor) for tensor in tensors(result)} - given
        self._graph.calls.append((function, args, kwargs, tensors(result)))
        return result

    def undo(self) -> None:
        """Put back what was changed of tensors that were there before."""
        with torch.no_grad():
            for tensor, value in self._before.values():
                tensor.copy_(value)


class _Refusing(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        refuse_waiting(function)
        return function(*args, **(kwargs or {}))


def refuse_waiting(function: Any) -> None:
    if function is torch.ops.aten._local_scalar_dense.default:
        raise RuntimeError("called a synchronizing CUDA operation")


def tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def place(tensor: Tensor) -> int:
    """What tensors that share memory share."""
    return tensor.untyped_storage().data_ptr()


class _Stream:
    def wait_stream(self, _other: object) -> None: ...


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ``torch.cuda`` record and replay on the CPU, as far as :mod:`npft.replay` asks it to."""
    mode: list[Any] = []

    @contextmanager
    def graph(recorded: Graph, **_: Any) -> Iterator[None]:
        noting = _Noting(recorded)
        try:
            with noting:
                yield
        finally:
            noting.undo()

    def set_mode(wanted: str | int) -> None:
        if wanted == "error":
            mode.append(_Refusing())
            mode[-1].__enter__()
        elif mode:
            mode.pop().__exit__(None, None, None)

    monkeypatch.setattr(Graph, "replays", 0)
    for name, value in {
        "CUDAGraph": Graph,
        "graph": graph,
        "graph_pool_handle": lambda: (0, 0),
        "current_device": lambda: 0,
        "device": lambda _: nullcontext(),
        "Stream": lambda _: _Stream(),
        "stream": lambda _: nullcontext(),
        "current_stream": _Stream,
        "empty_cache": lambda: None,
        "get_sync_debug_mode": lambda: 0,
        "set_sync_debug_mode": set_mode,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
