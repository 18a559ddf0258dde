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

SHORTEST = 11
"""GPTQModel leaves out windows of 10 tokens and fewer."""

PROBE = 32
"""Tokens after which both sides must predict the same."""

TOLERANCE = 1e-3
HALF_TOLERANCE = 5e-2
"""Relative distance of the logits that is rounding and no other model: float32, and 16 bits."""


def write(
    folder: Path, model: LanguageModel, batches: Iterable[Tensor], settings: dict[str, Any]
) -> None:
    """Write a job: the model, the calibration, the logits to find again, and the settings.

    Raises:
        NpftError: there is no calibration, its windows are too short or of another vocabulary, or
            the folder cannot be written.
    """
    tokens = {str(index): batch.cpu().contiguous() for index, batch in enumerate(batches)}
    _check_tokens(list(tokens.values()), model.vocabulary)
    dtype = model.network.dtype
    # The codes are read off the quantized weights, for which 8 bits need more than 16 do.
    working = torch.float32 if settings["bits"] == 8 else dtype
    job = {
        "layers": list(model.layers),
        "device": str(model.device),
        "dtype": str(working).removeprefix("torch."),
        "tolerance": TOLERANCE if dtype == torch.float32 else HALF_TOLERANCE,
        "settings": settings,
    }
    try:
        (folder / "out").mkdir()
        (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
        save_file(tokens, folder / "tokens.safetensors")
        save_file(_probe(model, tokens["0"][:1, :PROBE]), folder / "probe.safetensors")
        _save_model(model, folder / "model")
    except (OSError, SafetensorError) as error:
        raise NpftError(
            f"gptq's job folder {str(folder)!r} cannot be written ({in_one_line(error)}): free "
            "some space, or set TMPDIR to a larger place"
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
        codes, scale, zero = made["codes"], made["scale"], made["zero"]
        yield name, UniformWeight(codes, scale, zero, bits, group_size, g_idx=g_idx)


def _check_tokens(batches: list[Tensor], vocabulary: int) -> None:
    """Refuse what GPTQModel would leave out or replace, and only say so in its log."""
    if not batches:
        raise NpftError("gptq needs calibration windows, and was given none: give some text")
    shortest = min(batch.shape[1] for batch in batches)
    if shortest < SHORTEST:
        raise NpftError(
            f"gptq was given calibration windows of {shortest} tokens, and GPTQModel leaves out "
            f"those below {SHORTEST}: use a larger --context"
        )
    largest = max(int(batch.max()) for batch in batches)
    if largest >= vocabulary:
        raise NpftError(
            f"gptq was given the token {largest} for calibration, and the model knows {vocabulary} "
            "tokens: use the model's own tokenizer"
        )


def _probe(model: LanguageModel, tokens: Tensor) -> dict[str, Tensor]:
    """The beginning of a window ``(1, context)``, and its logits ``(context, vocabulary)``."""
    with torch.inference_mode():
        logits = model.network(input_ids=tokens.to(model.device)).logits[0]
    return {"tokens": tokens.contiguous(), "logits": logits.float().cpu().contiguous()}


def _save_model(model: LanguageModel, folder: Path) -> None:
    from transformers import GenerationConfig

    # A shallow copy can be saved without its generation defaults, which transformers may load
    # but refuse to save, while the model itself stays as it is.
    network = copy.copy(model.network)
    network.generation_config = GenerationConfig()
    with _no_bars():
        network.save_pretrained(folder)


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
