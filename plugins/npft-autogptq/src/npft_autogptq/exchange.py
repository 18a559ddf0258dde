"""The job folder: what is handed to the worker, and what it hands back."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from npft.artifacts import LanguageModel, UniformWeight
from npft.errors import NpftError, in_one_line
from npft_autogptq.old_words import translated

PROBES = 64
"""Positions of the first window at which both sides must predict the same."""

TOLERANCE = {torch.float32: 1e-3}
"""Relative distance of the logits that is rounding and no other model, by dtype.

SmolLM2 read with the wrong RoPE base is 0.2 away; its bfloat16 logits are 0.024 from float32's.
"""
HALF_TOLERANCE = 5e-2


def write(
    folder: Path, model: LanguageModel, batches: Iterable[Tensor], settings: dict[str, Any]
) -> None:
    """Write a job: the model, the calibration, the logits to find again, and the settings.

    Raises:
        NpftError: there is no calibration, or the folder cannot be written.
    """
    tokens = {str(index): batch.cpu().contiguous() for index, batch in enumerate(batches)}
    if not tokens:
        raise NpftError("autogptq needs calibration windows, and was given none: give some text")
    dtype = model.network.dtype
    job = {
        "layers": list(model.layers),
        "device": str(model.device),
        "dtype": str(dtype).removeprefix("torch."),
        "tolerance": TOLERANCE.get(dtype, HALF_TOLERANCE),
        "settings": settings,
    }
    try:
        (folder / "out").mkdir()
        (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
        save_file(tokens, folder / "tokens.safetensors")
        save_file(_probe(model, tokens["0"][:1]), folder / "probe.safetensors")
        _save_model(model, folder / "model")
    except (OSError, SafetensorError) as error:
        raise NpftError(
            f"autogptq's job folder {str(folder)!r} cannot be written ({in_one_line(error)}): "
            "free some space, or set TMPDIR to a larger place"
        ) from error


def read(
    folder: Path, model: LanguageModel, bits: int, group_size: int
) -> Iterator[tuple[str, UniformWeight]]:
    """What the worker made of each layer of ``model``, in order, on the layer's device."""
    for index, (name, layer) in enumerate(model.layers.items()):
        made = load_file(folder / "out" / f"{index}.safetensors", device=str(layer.weight.device))
        in_order = torch.arange(layer.in_features, device=layer.weight.device)
        in_order //= group_size or layer.in_features
        g_idx = None if torch.equal(made["g_idx"].long(), in_order) else made["g_idx"]
        yield (
            name,
            UniformWeight(
                made["codes"], made["scale"], made["zero"], bits, group_size, g_idx=g_idx
            ),
        )


def _probe(model: LanguageModel, tokens: Tensor) -> dict[str, Tensor]:
    """The first window ``(1, context)``, some positions in it, and the logits at those."""
    context = tokens.shape[1]
    positions = torch.linspace(0, context - 1, min(PROBES, context)).round().long()
    with torch.inference_mode():
        logits = model.network(input_ids=tokens.to(model.device)).logits[0]
    kept = logits[positions.to(logits.device)].float().cpu().contiguous()
    return {"tokens": tokens.contiguous(), "positions": positions, "logits": kept}


def _save_model(model: LanguageModel, folder: Path) -> None:
    from transformers import GenerationConfig

    # A shallow copy can be saved without its generation defaults, which transformers may load
    # but refuse to save, while the model itself stays as it is.
    network = copy.copy(model.network)
    network.generation_config = GenerationConfig()
    with _no_bars():
        network.save_pretrained(folder)
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(translated(config)), encoding="utf-8")


@contextmanager
def _no_bars() -> Iterator[None]:
    """Without transformers' progress bars, which would break npft's."""
    from transformers.utils import logging

    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if bars:
            logging.enable_progress_bar()
