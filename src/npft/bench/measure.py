"""What ``npft bench`` measures: products alone, and whole decoding, each against its floor."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from npft.bench.shapes import matrices
from npft.bench.timing import Times, graph_replays
from npft.packed.decoder import Decoder, Weights


@dataclass(frozen=True)
class Line:
    """One measured number.

    Attributes:
        what: ``linear`` for all linear layers of one token, ``decode`` for whole generation.
        variant: how the weights are kept.
        tokens: generated, 1 for ``linear``.
        milliseconds: the median, of one token.
        least, most: over the repeats, of one token.
        bytes: that one token must read: weights, tables, output head and, on average, the cache.
        floor_ms: bytes over the machine's read bandwidth.
        peak_gb: of GPU memory in decoding, 0 where it was not measured.
    """

    what: str
    variant: str
    tokens: int
    milliseconds: float
    least: float
    most: float
    bytes: float
    floor_ms: float
    peak_gb: float = 0.0

    @property
    def fraction(self) -> float:
        """The share of the bandwidth floor that is reached."""
        return self.floor_ms / self.milliseconds

    @property
    def seconds(self) -> float:
        """For all tokens."""
        return self.milliseconds * self.tokens / 1e3

    def as_row(self) -> dict[str, Any]:
        return {**asdict(self), "fraction": self.fraction, "seconds": self.seconds}


def linear(
    variant: str,
    weights: Weights,
    linear_bytes: float,
    bandwidth: float,
    replays: int,
    timed: Callable[[Callable[[], object], int], Times] = graph_replays,
) -> Line:
    """All linear layers of one token, one after the other.

    Args:
        variant: its name in the table.
        weights: the network.
        linear_bytes: what the linear layers must read.
        bandwidth: bytes per second.
        replays: of them all.
        timed: their times, by default those of a CUDA graph.
    """
    sizes = list(matrices(weights.shape).values())
    like = weights.embedding
    x = [torch.randn(1, columns, device=like.device).to(like.dtype) for _, columns in sizes]
    y = [like.new_empty(1, rows) for rows, _ in sizes]
    products = [
        (block.qkv.product, block.o, block.gate_up.product, block.down) for block in weights.blocks
    ]

    def work() -> None:
        for block in products:
            for product, given, out in zip(block, x, y, strict=True):
                product(given, out)

    times, floor = timed(work, replays), linear_bytes / bandwidth * 1e3
    return Line("linear", variant, 1, times.median, *times.spread, linear_bytes, floor)


def decoding(
    variant: str,
    weights: Weights,
    linear_bytes: float,
    lengths: Sequence[int],
    bandwidth: float,
    repeats: int,
) -> Iterator[Line]:
    """Generation of so many tokens after one, at batch 1: a line for each of ``lengths``.

    One run to the greatest length gives all, each as the time until so many tokens are there; the
    least length is measured ``repeats`` times.
    """
    torch.cuda.reset_peak_memory_stats()
    ordered = sorted(lengths)
    decoder = Decoder(weights, ordered[-1] + 1)
    decoder.run(8)
    runs = [_timed(decoder, ordered), *(_timed(decoder, ordered[:1]) for _ in range(repeats - 1))]
    peak = torch.cuda.max_memory_allocated() / 1e9
    for index, length in enumerate(ordered):
        times = Times(tuple(run[index] / length for run in runs if index < len(run)))
        read = linear_bytes + _rest(weights, length)
        floor = read / bandwidth * 1e3
        yield Line("decode", variant, length, times.median, *times.spread, read, floor, peak)


def _timed(decoder: Decoder, lengths: Sequence[int]) -> list[float]:
    """Milliseconds until each of ``lengths`` tokens are there."""
    decoder.reset()
    torch.cuda.synchronize()
    start, marks = torch.cuda.Event(enable_timing=True), []
    start.record()
    done = 0
    for length in lengths:
        decoder.run(length - done)
        done = length
        mark = torch.cuda.Event(enable_timing=True)
        mark.record()
        marks.append(mark)
    torch.cuda.synchronize()
    return [start.elapsed_time(mark) for mark in marks]


def _rest(weights: Weights, length: int) -> float:
    """Bytes read per token beside the linear layers: the output head, and the cache so far."""
    shape = weights.shape
    row = 2 * shape.layers * shape.kv_heads * shape.head * weights.embedding.element_size()
    return weights.head.nbytes + row * (length - 1) / 2


@dataclass(frozen=True)
class Agreement:
    """How alike two decoders are, fed with the same tokens.

    Attributes:
        share: of the greedy choices that are the same.
        error: of the logits, the norm of the difference over the norm, at most.
        clear: choices that rounding cannot change: the best logit leads the second by more than
            twice the greatest difference of any logit.
        decided: the share of same choices among the clear ones: below 1 means an error.
    """

    share: float
    error: float
    clear: int
    decided: float


def agreement(one: Decoder, other: Decoder, tokens: int) -> Agreement:
    """Compare ``tokens`` greedy choices of two decoders of one model."""
    chosen = one.generate(torch.zeros(1, dtype=torch.long), tokens)
    one.reset()
    other.reset()
    same, errors, decided = [], [], []
    for token in [0, *chosen.tolist()[:-1]]:
        first, second = one.feed(token)[0].float(), other.feed(token)[0].float()
        difference = (first - second).abs()
        same.append(bool(first.argmax() == second.argmax()))
        errors.append(float(difference.norm() / second.norm()))
        best = second.topk(2).values
        if best[0] - best[1] > 2 * difference.max():
            decided.append(same[-1])
    clear = len(decided)
    return Agreement(sum(same) / tokens, max(errors), clear, sum(decided) / max(1, clear))
