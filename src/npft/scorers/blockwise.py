"""Scoring a streamed model: block by block, so that memory does not grow with depth."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from npft.artifacts import LanguageModel
from npft.errors import NpftError
from npft.losses import sequence_losses
from npft.scorers.squares import Squares
from npft.streaming import Stream
from npft.streaming.blocks import Call, hidden_of


class Blockwise:
    """All batches on their way through the blocks, forward once and back once.

    ``_states[i][b]`` is, in host memory, what batch b brings to block i; once block i has been
    passed on the way back, it is the loss's gradient with respect to that. Together they are
    ``(blocks + 1) x tokens x width`` values of the model's dtype.
    """

    def __init__(self, model: LanguageModel, batches: Iterable[Tensor]) -> None:
        assert model.stream is not None
        self._model = model
        self._stream: Stream = model.stream
        self._count = len(self._stream.blocks)
        self._tokens = list(batches)
        self._calls: list[list[Call]] = []  # of each batch, those of the blocks
        self._others: tuple[Any, ...] | None = None
        self._states: list[list[Tensor]] = [[] for _ in range(self._count + 1)]

    def scores(self) -> Iterator[tuple[str, Tensor]]:
        """Sums of the squared gradients of each sequence, by layer, the last block's first."""
        with torch.no_grad():
            for tokens in self._tokens:
                self._record(tokens)
            self._forward()
        self._loss()
        layers: dict[int, list[str]] = {}
        for name in self._model.layers:
            layers.setdefault(self._stream.index_of(name), []).append(name)
        for index in reversed(range(self._count)):
            squares = self._backward(index, layers.get(index, []))
            for name in layers.get(index, []):
                yield name, squares.pop(name)

    def _record(self, tokens: Tensor) -> None:
        """Note what the blocks are called with, without running them."""
        calls: list[Call] = []
        passed: list[Any] = []

        def note(index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if not args or (passed and args[0] is not hidden_of(passed[-1])):
                raise NpftError(
                    f"{type(self._model.network).__name__} does not hand the output of a block "
                    "straight to the next, so it cannot be scored streamed: use --memory resident"
                )
            calls.append(Call(args[1:], kwargs))
            if self._others is None:
                self._others = self._beside(args, kwargs)
            passed[:] = [self._as_output(args[0])]
            if index == 0:
                self._states[0].append(self._to_host(args[0]))
            return passed[0]

        with self._stream.replaced(note):
            self._model.network.base_model(input_ids=tokens, use_cache=False)
        self._calls.append(calls)

    def _forward(self) -> None:
        for index in range(self._count):
            with self._stream.on_device(index, ahead=1):
                for batch, state in enumerate(self._states[index]):
                    after = self._run(index, batch, self._to_device(state))
                    self._states[index + 1].append(self._to_host(after))

    def _loss(self) -> None:
        """Put the loss's gradients in the place of the last block's outputs.

        What follows the blocks is whatever the network does where they do nothing.
        """
        for tokens, state in zip(self._tokens, self._states[-1], strict=True):
            last = self._to_device(state).requires_grad_()

            def instead(index: int, args: tuple[Any, ...], _: dict[str, Any]) -> Any:
                return self._as_output(last if index == self._count - 1 else args[0])  # noqa: B023

            with self._stream.replaced(instead), torch.enable_grad():
                logits = self._model.network(input_ids=tokens, use_cache=False).logits
                loss = sequence_losses(logits, tokens).sum()
            state.copy_(torch.autograd.grad(loss, last)[0], non_blocking=True)

    def _backward(self, index: int, layers: list[str]) -> Squares:
        """Run a block again and back; leave the gradients of its inputs in their place."""
        squares = Squares([self._model.layers[name] for name in layers], self._model.device)
        after = self._states.pop()
        with self._stream.on_device(index, ahead=-1), squares.watching(), torch.enable_grad():
            for batch, (tokens, state) in enumerate(
                zip(self._tokens, self._states[index], strict=True)
            ):
                squares.shape = tokens.shape
                before = self._to_device(state).requires_grad_()
                output = self._run(index, batch, before)
                grad = torch.autograd.grad(output, before, self._to_device(after[batch]))[0]
                state.copy_(grad, non_blocking=True)
        return squares

    def _run(self, index: int, batch: int, hidden: Tensor) -> Tensor:
        call = self._calls[batch][index]
        return hidden_of(self._stream.call(index, hidden, *call.args, **call.kwargs))

    def _beside(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """What the first block gives beside the hidden states; all are taken to be alike."""
        with self._stream.on_device(0):
            output = self._stream.call(0, *args, **kwargs)
        return output[1:] if isinstance(output, tuple) else ()

    def _as_output(self, hidden: Tensor) -> Any:
        return (hidden, *self._others) if self._others else hidden

    def _to_host(self, tensor: Tensor) -> Tensor:
        pinned = self._model.device.type == "cuda"
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=pinned)
        return host.copy_(tensor, non_blocking=True)

    def _to_device(self, host: Tensor) -> Tensor:
        tensor = torch.empty(host.shape, dtype=host.dtype, device=self._model.device)
        return tensor.copy_(host, non_blocking=True)
