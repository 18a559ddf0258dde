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
from npft.packed.decoder import Decoder
from npft.packed.tensors import PackedTensors
from npft.progress import Progress


def of_shape(name: str, lengths: Sequence[int], repeats: int, progress: Progress) -> Result:
    """Random weights of a model's shape, in every format, beside the rivals.

    Raises:
        NpftError: there is no such shape, or no GPU.
    """
    shape, dtype = shape_named(name), torch.bfloat16
    result = start(f"random weights of the shape {name}")
    bandwidth, replays = result.bandwidth, 3 * repeats
    for rival in (rivals.cublas(dtype), rivals.torch_int4()):
        progress.note(rival.name)
        result.lines.append(measure.linear_rival(rival, shape, bandwidth, dtype, replays))
    for form in FORMATS:
        progress.note(f"{form.name}: linear layers")
        result.lines.append(measure.linear_packed(form, shape, bandwidth, dtype, replays))
    progress.note("bfloat16: decoding")
    weights = random_weights(shape, rivals.cublas(dtype).make, dtype)
    size = measure.float_size(shape)
    result.lines += measure.decoding("bfloat16", weights, size, lengths, bandwidth, repeats)
    del weights
    for form in FORMATS:
        progress.note(f"{form.name}: decoding")
        kept: list[PackedTensors] = []
        weights = random_weights(shape, packed_maker(form, kept), dtype)
        size = sum(weight.nbytes for weight in kept)
        result.lines += measure.decoding(form.name, weights, size, lengths, bandwidth, repeats)
        if form == Format("kmeans", 4):
            result.agreements[form.name] = measure.agreement(
                Decoder(weights, 129), Decoder(dequantized(weights, kept, dtype), 129), 128
            )
        del weights, kept
    result.missing = rivals.not_measured()
    return result
