"""What ``npft bench`` measures: products alone, and whole decoding, each against its floor."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from npft.bench.rivals import Rival
from npft.bench.shapes import Format, matrices, random_tensors
from npft.bench.timing import Times, graph_replays
from npft.packed.decoder import Decoder, Product, Shape, Weights, packed_product
from npft.packed.tensors import PackedTensors


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
    shape: Shape,
    make: Callable[[int, int], Product],
    size: Callable[[], float],
    bandwidth: float,
    dtype: torch.dtype,
    repeats: int,
) -> Line:
    """All linear layers of one token, each with weights of its own, in one graph.

    Args:
        variant: its name in the table.
        shape: of the model.
        make: makes a product of ``(out, in)``.
        size: the bytes that all products made so far must read.
        bandwidth: bytes per second.
        dtype: of the activations.
        repeats: replays.
    """
    sizes = list(matrices(shape).values())
    products = [[make(*each) for each in sizes] for _ in range(shape.layers)]
    x = [torch.randn(1, columns, device="cuda").to(dtype) for _, columns in sizes]
    y = [torch.empty(1, rows, dtype=dtype, device="cuda") for rows, _ in sizes]

    def work() -> None:
        for block in products:
            for product, given, out in zip(block, x, y, strict=True):
                product(given, out)

    times, read = graph_replays(work, repeats), size()
    return Line("linear", variant, 1, times.median, *times.spread, read, read / bandwidth * 1e3)


def linear_packed(
    form: Format, shape: Shape, bandwidth: float, dtype: torch.dtype, repeats: int
) -> Line:
    """:func:`linear` of random packed weights."""
    kept: list[PackedTensors] = []

    def make(rows: int, columns: int) -> Product:
        kept.append(random_tensors(form, rows, columns))
        return packed_product(kept[-1])

    def size() -> float:
        return sum(weight.nbytes for weight in kept)

    return linear(form.name, shape, make, size, bandwidth, dtype, repeats)


def linear_rival(
    rival: Rival, shape: Shape, bandwidth: float, dtype: torch.dtype, repeats: int
) -> Line:
    """:func:`linear` of a rival."""
    weights = shape.layers * sum(rows * columns for rows, columns in matrices(shape).values())

    def size() -> float:
        return weights * rival.bytes_per_weight

    return linear(rival.name, shape, rival.make, size, bandwidth, dtype, repeats)


def decoding(
    variant: str,
    weights: Weights,
    linear_bytes: float,
    lengths: Sequence[int],
    bandwidth: float,
    repeats: int,
) -> Iterator[Line]:
    """Generation of so many tokens after one, at batch 1: a line for each of ``lengths``.

    The shorter lengths are read off the longest, whose first tokens they are.
    """
    torch.cuda.reset_peak_memory_stats()
    decoder = Decoder(weights, max(lengths) + 1)
    decoder.run(8)
    runs = [_timed(decoder, sorted(lengths)) for _ in range(repeats)]
    peak = torch.cuda.max_memory_allocated() / 1e9
    for index, length in enumerate(sorted(lengths)):
        times = Times(tuple(run[index] / length for run in runs))
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


def agreement(one: Decoder, other: Decoder, tokens: int) -> float:
    """The share of ``tokens`` greedy choices in which two decoders agree, fed with the same."""
    chosen = one.generate(torch.zeros(1, dtype=torch.long), tokens)
    fed = [0, *chosen.tolist()[:-1]]
    other.reset()
    same = [
        int(other.feed(token).argmax()) == int(new) for token, new in zip(fed, chosen, strict=True)
    ]
    return sum(same) / tokens


def float_size(shape: Shape) -> float:
    """Bytes of the linear layers in 16 bits."""
    return 2.0 * shape.layers * sum(rows * columns for rows, columns in matrices(shape).values())
