"""The passes of a tuning step as CUDA graphs: recorded once, replayed at every step.

A pass launches thousands of kernels, each of which takes the host longer than the device unless
model and batch are large. A recorded pass is launched as one. (CUDA C++ programming guide, "CUDA
Graphs"; PyTorch's "Whole-network capture".)
"""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from npft.attention import check_unmasked, unmasked
from npft.errors import in_one_line
from npft.passes import Direct
from npft.waiting import refusing_to_wait

T = TypeVar("T")


@contextmanager
def replayed(direct: Direct, network: nn.Module, note: Callable[[str], None]) -> Iterator[Replayed]:
    """Passes that are replayed in this scope; after it their memory is free."""
    passes = Replayed(direct, network, note)
    try:
        yield passes
    finally:
        passes.release()


class Replayed:
    """The passes of another, replayed; the same numbers, bit for bit.

    The first batch's shape is recorded; batches of other shapes, such as the last of an epoch, go
    the direct way. Weights and adapter are read where they are at each replay, so that noise may
    be put on them in between. Where the passes cannot be recorded, all go the direct way.
    """

    def __init__(self, direct: Direct, network: nn.Module, note: Callable[[str], None]) -> None:
        """Prepare to record.

        Args:
            direct: the passes. Its processes must be alone, its adapter without dropout, its
                objective ``replayable``, and its model resident on a CUDA device.
            network: the model, whose attention is found.
            note: called with a sentence if the passes cannot be recorded.
        """
        self._direct = direct
        self._network = network
        self._note = note
        self._shape: torch.Size | None = None
        self._recording: _Recording | None = None

    def original(self, tokens: Tensor) -> object | None:
        """As :meth:`npft.passes.Passes.original`."""
        recording = self._recorded(tokens)
        if recording is None:
            return self._direct.original(tokens)
        return recording.original(tokens)

    def learn(self, tokens: Tensor, original: object | None, weight: float) -> Tensor:
        """As :meth:`npft.passes.Passes.learn`; ``original`` is that of the same tokens."""
        recording = self._recorded(tokens)
        if recording is None:
            return self._direct.learn(tokens, original, weight)
        return recording.learn(tokens, weight)

    def forget(self) -> None:
        """As :meth:`npft.passes.Passes.forget`, in place where a recording adds to them."""
        if self._recording is None:
            self._direct.forget()
        else:
            self._recording.forget()

    def release(self) -> None:
        """Give back the memory of what was recorded, between two steps; the next records anew."""
        if self._recording is not None:
            self._recording, self._shape = None, None
            self._direct.forget()
            torch.cuda.empty_cache()

    def _recorded(self, tokens: Tensor) -> _Recording | None:
        """What was recorded for this shape, which the first batch decides."""
        if self._shape is None:
            self._shape = tokens.shape
            self._recording = self._record(tokens)
        return self._recording if tokens.shape == self._shape else None

    def _record(self, tokens: Tensor) -> _Recording | None:
        try:
            return _Recording(self._direct, self._network, tokens)
        except RuntimeError as error:  # what torch raises, of CUDA and of code that waits for it
            why = in_one_line(_first(error))
        torch.cuda.empty_cache()  # here the error and what it held are gone
        self._note(f"the passes cannot be recorded ({why}): each is launched anew, which is slower")
        return None


class _Recording:
    """Graphs of both passes for one shape of tokens, over memory of their own."""

    def __init__(self, direct: Direct, network: nn.Module, tokens: Tensor) -> None:
        """Record; of the model and the adapter nothing changes, gradients included.

        Raises:
            RuntimeError: that cannot be done.
        """
        self._tokens = tokens.clone()
        self._weight = torch.ones((), device=tokens.device)
        before = [parameter.grad for parameter in direct.adapter]
        check_unmasked(network, lambda: direct.forward(self._tokens))
        try:
            with torch.cuda.device(tokens.device), unmasked(network):
                self._capture(direct, before)
        except BaseException:
            _set_gradients(direct, before)
            raise

    def _capture(self, direct: Direct, before: list[Tensor | None]) -> None:
        stream = _side_stream(torch.cuda.current_device())
        pool = torch.cuda.graph_pool_handle()
        direct.forget()
        _warm_up(stream, lambda: self._step(direct))
        # Gradients are added to these from now on; a parameter that gets none has none.
        lasting = [
            torch.zeros_like(parameter) if old is None and parameter.grad is not None else old
            for parameter, old in zip(direct.adapter, before, strict=True)
        ]
        _set_gradients(direct, lasting)
        self._gradients = [gradient for gradient in lasting if gradient is not None]
        gc.collect()  # nodes of older autograd graphs would tie the recording to other streams
        torch.cuda.empty_cache()  # what the warm-up had is needed again, as the graphs' own
        self._original = self._output = None
        if direct.needs_original:
            self._original = _Graph(lambda: direct.original(self._tokens), stream, pool)
            self._output = self._original.result
        self._learn = _Graph(
            lambda: direct.learn(self._tokens, self._output, self._weight), stream, pool
        )

    def _step(self, direct: Direct) -> None:
        direct.learn(self._tokens, direct.original(self._tokens), self._weight)

    def original(self, tokens: Tensor) -> object | None:
        """The original model's output, overwritten by the next call."""
        if self._original is None:
            return None
        self._tokens.copy_(tokens)
        return self._original.replay()

    def learn(self, tokens: Tensor, weight: float) -> Tensor:
        """Forward and backward, after :meth:`original` of the same tokens."""
        self._tokens.copy_(tokens)
        self._weight.fill_(weight)
        return self._learn.replay().clone()  # the next replay overwrites it

    def forget(self) -> None:
        """Set the gradients to zero where they are."""
        torch._foreach_zero_(self._gradients)


@functools.cache
def _side_stream(device: int) -> torch.cuda.Stream:
    """One for all recordings: cuBLAS keeps a workspace for each stream that it has seen."""
    return torch.cuda.Stream(device)


def _first(error: BaseException) -> BaseException:
    """What an error followed from: ending a recording that broke off fails as well."""
    while error.__context__ is not None:
        error = error.__context__
    return error


def _warm_up(stream: torch.cuda.Stream, step: Callable[[], None]) -> None:
    """Let libraries and kernels load, on the stream of the recording, and look for waits.

    Raises:
        RuntimeError: the host waits for the device in a step, which cannot be recorded.
    """
    stream.wait_stream(torch.cuda.current_stream())
    try:
        with torch.cuda.stream(stream):
            step()  # what loads may wait
            with refusing_to_wait():
                step()
    finally:  # a step that broke off still runs, on memory that others are given next
        torch.cuda.current_stream().wait_stream(stream)


class _Graph(Generic[T]):
    """What a function launches, and its result, which every replay overwrites.

    Graphs of one pool use the same memory in turn: what a later one works in, an earlier one may
    overwrite, but for results.
    """

    def __init__(self, run: Callable[[], T], stream: torch.cuda.Stream, pool: Any) -> None:
        """Record ``run()``, which does nothing yet."""
        self._graph = torch.cuda.CUDAGraph()
        with (
            _no_collection(),
            torch.cuda.graph(
                self._graph, pool=pool, stream=stream, capture_error_mode="thread_local"
            ),
        ):
            self.result = run()

    def replay(self) -> T:
        """Launch all of it."""
        self._graph.replay()
        return self.result


@contextmanager
def _no_collection() -> Iterator[None]:
    """A scope in which no garbage of others, such as events, is destroyed: that may wait."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def _set_gradients(direct: Direct, gradients: list[Tensor | None]) -> None:
    for parameter, gradient in zip(direct.adapter, gradients, strict=True):
        parameter.grad = gradient
