"""Open a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from npft import model_checks, models
from npft.artifacts import LanguageModel, PackedWeight, QuantizedModel, weight_checks
from npft.checkpoints import formats
from npft.checkpoints.format import Format
from npft.checkpoints.manifest import Manifest
from npft.checkpoints.stored import WEIGHTS, Stored
from npft.errors import NpftError, in_one_line


def load(folder: Path, *, device: str = "auto", dtype: str = "float32") -> QuantizedModel:
    """Open a checkpoint as a model that runs on the dequantized weights.

    Raises:
        NpftError: the folder holds no checkpoint, one in a format that npft cannot read, or a
            broken one: shapes that do not fit, codes or indices out of range.
    """
    target = models.pick_device(device)
    try:
        found = _load(folder, dtype)
        found.model.network.to(target)  # type: ignore[arg-type]
        return found
    except Exception as error:
        raise NpftError(
            f"{str(folder)!r} holds no quantized checkpoint that npft can read: "
            f"{in_one_line(error)}"
        ) from error


def _load(folder: Path, dtype: str) -> QuantizedModel:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    if not (folder / "config.json").is_file():  # transformers would ask the hub for one
        raise NpftError("it has no config.json")
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    settings = getattr(config, "quantization_config", None)
    if not isinstance(settings, dict):
        raise NpftError("its config.json has no quantization_config")
    del config.quantization_config
    form = formats.by_method(settings.get("quant_method"))
    model_checks.check_weights_fit(str(folder), config, [folder / WEIGHTS], per_byte=4)  # 2 bits
    network = AutoModelForCausalLM.from_config(
        config, dtype=models.DTYPES[dtype], trust_remote_code=False
    )
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    model = models.wrap(network, tokenizer, str(folder))
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    weights = _fill(model, form, settings, tensors)
    about = Manifest.read(folder, settings)
    return QuantizedModel(
        model,
        weights,
        about.quantizer,
        about.bits,
        about.group_size,
        about.format,
        about.notes,
        about.variant,
    )


def _fill(
    model: LanguageModel, form: Format, settings: Mapping[str, Any], tensors: dict[str, Tensor]
) -> dict[str, PackedWeight]:
    """Put the stored tensors into the model; all of them are checked before the first is put."""
    state = model.network.state_dict(keep_vars=True)
    weights: dict[str, PackedWeight] = {}
    for name, layer in model.layers.items():
        if f"{name}.weight" in tensors:
            continue  # Others may leave some layers as they are.
        shape = (layer.out_features, layer.in_features)
        own = {
            key.removeprefix(f"{name}."): tensors.pop(key)
            for key in list(tensors)
            if key.rpartition(".")[0] == name and key not in state
        }
        stored = Stored(name, shape, own)
        weights[name] = form.unpack(stored, settings)
        fault = weight_checks.fault(weights[name])
        stored.require(fault is None, fault or "")
    for name in form.beside(model):
        tensors.pop(name, None)
    unknown = tensors.keys() - state.keys()
    if unknown:
        raise NpftError(f"it has {min(unknown)}, which the model has no place for")
    missing = state.keys() - tensors.keys() - {f"{name}.weight" for name in weights} - _tied(state)
    if missing:
        raise NpftError(f"it lacks {min(missing)}")
    model.network.load_state_dict(tensors, strict=False)
    for name, weight in weights.items():
        model.layers[name].weight.copy_(weight.dequantize())
    return weights


def _tied(state: Mapping[str, Tensor]) -> set[str]:
    """Names that share a tensor with another: filled through that one."""
    first: dict[int, str] = {}
    return {name for name, value in state.items() if first.setdefault(id(value), name) != name}
