"""Write a checkpoint."""

from __future__ import annotations

import copy
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from npft import models
from npft.artifacts import LanguageModel, QuantizedModel
from npft.checkpoints import formats
from npft.checkpoints.manifest import Manifest
from npft.checkpoints.stored import WEIGHTS
from npft.errors import NpftError, in_one_line


def save(quantized: QuantizedModel, folder: Path) -> None:
    """Write a quantized model into ``folder``, which is made, in its format.

    Raises:
        NpftError: the format cannot hold the model, its library is missing, or the folder cannot
            be written.
    """
    form = formats.by_name(quantized.format)
    for name, layer in quantized.model.layers.items():
        why = form.refusal(layer, quantized.weights[name].bits)
        if why is not None:
            raise NpftError(
                f"{quantized.label} cannot be written as {quantized.format}, as {why}: choose "
                "another format"
            )
    tensors = _unquantized(quantized.model) | form.beside(quantized.model)
    settings = form.settings(quantized)
    for name, weight in quantized.weights.items():
        for suffix, values in form.pack(weight, settings).items():
            tensors[f"{name}.{suffix}"] = values.cpu().contiguous()
    config = copy.deepcopy(quantized.model.network.config)
    config.quantization_config = settings
    try:
        folder.mkdir(parents=True, exist_ok=True)
        config.save_pretrained(folder)
        models.save_words(quantized.model, folder)
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
        Manifest.of(quantized).write(folder)
    except (OSError, SafetensorError) as error:
        raise NpftError(
            f"checkpoint {str(folder)!r} cannot be written ({in_one_line(error)}): free some "
            "space, or give another folder"
        ) from error


def _unquantized(model: LanguageModel) -> dict[str, Tensor]:
    """Parameters and saved buffers beside the quantized weights, each tied one once."""
    quantized = {id(layer.module.weight) for layer in model.layers.values()}
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, value in model.network.state_dict(keep_vars=True).items():
        if id(value) not in quantized and id(value) not in seen:
            seen.add(id(value))
            tensors[name] = value.detach().cpu().contiguous()
    return tensors
