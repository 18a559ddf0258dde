"""The packed checkpoints of a run folder, and the same models dequantized."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from npft import checkpoints, generation
from npft.bench import measure
from npft.bench.result import Result, start
from npft.bench.rivals.apart import NOT_INSTALLED
from npft.bench.rivals.every import RIVALS
from npft.packed.decoder import Decoder, take_apart
from npft.packed.model import pack_model, packed_layers
from npft.progress import Progress


def of_run(run: Path, of: str, lengths: Sequence[int], repeats: int, progress: Progress) -> Result:
    """The packed checkpoints of a run folder, and the same models dequantized.

    Raises:
        NpftError: the folder has no packed checkpoints, one cannot be decoded by graphs, or
            there is no GPU.
    """
    paths = generation.checkpoints_of(run, of) or [generation.checkpoint_of(run, None, of)]
    result = start(str(run))
    for index, path in enumerate(paths):
        progress.note(f"{path.name}: decoding")
        quantized = checkpoints.load(path, device="cuda", dtype="bfloat16")
        packed = pack_model(quantized).network
        size = sum(layer.weight.nbytes for layer in packed_layers(packed))
        weights, floats = take_apart(packed), take_apart(quantized.model.network)
        if index == 0:
            plain = 2.0 * sum(weight.codes.numel() for weight in quantized.weights.values())
            result.lines += measure.decoding(
                "bfloat16", floats, plain, lengths, result.bandwidth, repeats
            )
        result.lines += measure.decoding(
            path.name, weights, size, lengths, result.bandwidth, repeats
        )
        result.agreements[path.name] = measure.agreement(
            Decoder(weights, 129), Decoder(floats, 129), 128
        )
    result.missing = {
        rival.name: "npft bench --shape measures it" if rival.installed else NOT_INSTALLED
        for rival in RIVALS.values()
    }
    return result
