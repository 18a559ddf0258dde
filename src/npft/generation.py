"""Text from the packed checkpoints of a run folder."""

from __future__ import annotations

from pathlib import Path

import torch

from npft import checkpoints
from npft.errors import NpftError
from npft.models import pick_device
from npft.packed.decoder import Decoder, knows, take_apart
from npft.packed.model import PackedModel, pack_model

QUANTIZED = "quantized"

_GRAPH = (torch.float16, torch.bfloat16)
"""Dtypes that decoding by CUDA graphs knows."""


def checkpoint_of(run: Path, quant: str | None, of: str = "tuned") -> Path:
    """The folder of one packed checkpoint.

    Args:
        run: a run folder, or a checkpoint itself.
        quant: a setting such as ``kmeans-4``; None takes the only one there is.
        of: whose: ``tuned``, ``control`` or ``original``.

    Raises:
        NpftError: there is none, no such one, or more than one to choose from.
    """
    if (run / checkpoints.MANIFEST).is_file():
        return run
    found = {path.name: path for path in checkpoints_of(run, of)}
    if not found:
        raise NpftError(
            f"{str(run)!r} has no packed checkpoints of the {of} model: make some with npft "
            "quantize"
        )
    if quant is None and len(found) == 1:
        return next(iter(found.values()))
    if quant is None:
        raise NpftError(f"{str(run)!r} has {_listed(found)}: choose one with --quant")
    if quant not in found:
        raise NpftError(f"{str(run)!r} has no checkpoint {quant!r}: there is {_listed(found)}")
    return found[quant]


def checkpoints_of(run: Path, of: str) -> list[Path]:
    """The packed checkpoints of one of the run folder's models."""
    place = run / QUANTIZED if of == "tuned" else run / QUANTIZED / of
    if not place.is_dir():
        return []
    return sorted(path for path in place.iterdir() if (path / checkpoints.MANIFEST).is_file())


def load(path: Path, *, device: str = "auto", dtype: str | None = None) -> PackedModel:
    """A packed checkpoint as a model that runs on its packed weights.

    Args:
        path: the checkpoint's folder.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        dtype: of the activations; None for bfloat16 on a GPU and float32 on the CPU.

    Raises:
        NpftError: it cannot be read, or has a layer without packed kernels.
    """
    chosen = dtype or ("bfloat16" if pick_device(device).type == "cuda" else "float32")
    return pack_model(checkpoints.load(path, device=device, dtype=chosen))


def generate(
    model: PackedModel, prompt: str, most: int, *, temperature: float = 0.0, seed: int = 0
) -> str:
    """The text that follows ``prompt``: greedy, or drawn at a ``temperature``.

    Greedy decoding of a Llama-like network on a GPU runs as a CUDA graph.
    """
    if temperature < 0:
        raise NpftError(f"temperature {temperature} is negative: give 0 for greedy, or more")
    if temperature > 0:
        devices = [model.device] if model.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            return model.generate(prompt, most, do_sample=True, temperature=temperature)
    if model.device.type == "cuda" and model.network.dtype in _GRAPH and knows(model.network):
        ids = model.encode(prompt)
        decoder = Decoder(take_apart(model.network), len(ids) + most)
        return model.decode(decoder.generate(ids, most, model.stops()))
    return model.generate(prompt, most)


def _listed(found: dict[str, Path]) -> str:
    return ", ".join(sorted(found))
