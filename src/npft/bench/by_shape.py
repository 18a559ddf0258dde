"""Random weights of a model's shape, in every format, beside the rivals."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from npft.bench import measure, rivals
from npft.bench.result import Result, start
from npft.bench.shapes import (
    FORMATS,
    Format,
    dequantized,
    packed_maker,
    random_weights,
    shape_named,
)
from npft.packed.decoder import Decoder, Shape
from npft.packed.tensors import PackedTensors
from npft.progress import Progress

DTYPE = torch.bfloat16
REPLAYS = 3
COMPARED = Format("kmeans", 4)
"""The format whose tokens are compared with those of the same model dequantized."""


def of_shape(name: str, lengths: Sequence[int], repeats: int, progress: Progress) -> Result:
    """Random weights of a model's shape, in every format, beside the rivals.

    Raises:
        NpftError: there is no such shape, or no GPU.
    """
    shape = shape_named(name)
    result = start(f"random weights of the shape {name}")
    _floats(result, shape, lengths, repeats, progress)
    for form in FORMATS:
        _packed(result, shape, form, lengths, repeats, progress)
    result.missing = rivals.not_measured()
    return result


def _floats(
    result: Result, shape: Shape, lengths: Sequence[int], repeats: int, progress: Progress
) -> None:
    int4 = rivals.torch_int4()
    progress.note(int4.name)
    size = measure.float_size(shape) / 2 * int4.bytes_per_weight
    weights = random_weights(shape, int4.make, DTYPE)
    replays = REPLAYS * repeats
    result.lines.append(measure.linear(int4.name, weights, size, result.bandwidth, replays))
    del weights
    cublas = rivals.cublas(DTYPE)
    progress.note(cublas.name)
    size = measure.float_size(shape)
    weights = random_weights(shape, cublas.make, DTYPE)
    result.lines.append(measure.linear(cublas.name, weights, size, result.bandwidth, replays))
    result.lines += measure.decoding(cublas.name, weights, size, lengths, result.bandwidth, repeats)


def _packed(
    result: Result,
    shape: Shape,
    form: Format,
    lengths: Sequence[int],
    repeats: int,
    progress: Progress,
) -> None:
    progress.note(form.name)
    kept: list[PackedTensors] = []
    weights = random_weights(shape, packed_maker(form, kept), DTYPE)
    size = sum(weight.nbytes for weight in kept)
    bandwidth, replays = result.bandwidth, REPLAYS * repeats
    result.lines.append(measure.linear(form.name, weights, size, bandwidth, replays))
    if form.group_size:  # there to compare with PyTorch's int4, which has groups
        return
    result.lines += measure.decoding(form.name, weights, size, lengths, bandwidth, repeats)
    if form == COMPARED:
        result.agreements[form.name] = measure.agreement(
            Decoder(weights, 129), Decoder(dequantized(weights, kept, DTYPE), 129), 128
        )
