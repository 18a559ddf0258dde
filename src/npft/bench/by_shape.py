"""Random weights of a model's shape, in every format, beside the rivals."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from npft.bench import measure
from npft.bench.result import Result, start
from npft.bench.rivals.apart import measured
from npft.bench.rivals.every import RIVALS
from npft.bench.rivals.pytorch import CUBLAS
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
    torch.cuda.empty_cache()  # rivals have processes of their own
    for rival in RIVALS.values():
        progress.note(rival.name)
        found = measured(rival, name, result.bandwidth, REPLAYS * repeats)
        if isinstance(found, str):
            result.missing[rival.name] = found
        else:
            result.lines.append(found)
    _floats(result, shape, lengths, repeats, progress)
    for form in FORMATS:
        _packed(result, shape, form, lengths, repeats, progress)
    return result


def _floats(
    result: Result, shape: Shape, lengths: Sequence[int], repeats: int, progress: Progress
) -> None:
    name, size, bandwidth = CUBLAS.name, CUBLAS.size(shape), result.bandwidth
    progress.note(name)
    weights = random_weights(shape, CUBLAS.product, DTYPE)
    result.lines.append(measure.linear(name, weights, size, bandwidth, REPLAYS * repeats))
    result.lines += measure.decoding(name, weights, size, lengths, bandwidth, repeats)


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
