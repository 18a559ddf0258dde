"""Packed checkpoints: safetensors with bit-packed codes and their tables.

Layout of a folder: the Hugging Face ``config.json`` and tokenizer; ``model.safetensors`` with the
parameters that are not quantized under their own names and, per quantized layer NAME,

- ``NAME.codes``: ``(out, ceil(in * bits / 8))`` uint8, each row a little-endian bit stream in
  which code j occupies the bits ``j * bits .. (j + 1) * bits - 1``;
- ``NAME.scale``, ``NAME.zero``: ``(out, groups)`` float16 and uint8 (layout ``uniform``), or
- ``NAME.codebook``: ``(out, 2**bits)`` float16 (layout ``codebook``);

and ``quantization.json``: ``{"format": 1, "quantizer", "bits", "group_size", "layers": {NAME:
{"layout", "in_features"}}}``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from npft import models
from npft.artifacts import (
    CodebookWeight,
    LanguageModel,
    PackedWeight,
    QuantizedModel,
    SparsePart,
    UniformWeight,
)
from npft.errors import NpftError
from npft.packed.bits import pack, unpack

MANIFEST = "quantization.json"
WEIGHTS = "model.safetensors"


def save(quantized: QuantizedModel, folder: Path) -> None:
    """Write a packed checkpoint into ``folder``, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    network = quantized.model.network
    network.config.save_pretrained(folder)
    if quantized.model.tokenizer is not None:
        quantized.model.tokenizer.save_pretrained(folder)
    tensors = _unquantized(quantized)
    manifest: dict[str, Any] = {
        "format": 1,
        "quantizer": quantized.quantizer,
        "bits": quantized.bits,
        "group_size": quantized.group_size,
        "variant": quantized.variant,
        "notes": list(quantized.notes),
        "layers": {},
    }
    for name, weight in quantized.weights.items():
        tensors[f"{name}.codes"] = pack(weight.codes, weight.bits).cpu()
        for table, values in weight.tables().items():
            tensors[f"{name}.{table}"] = values.cpu().contiguous()
        manifest["layers"][name] = {"layout": weight.layout, "in_features": weight.shape[1]}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def load(folder: Path, *, device: str = "auto", dtype: str = "float32") -> QuantizedModel:
    """Open a packed checkpoint as a model that runs on the dequantized weights.

    Raises:
        NpftError: the folder holds no packed checkpoint, or a broken one.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        config = AutoConfig.from_pretrained(folder)
        network = AutoModelForCausalLM.from_config(config, dtype=models.DTYPES[dtype])
        tokenizer = AutoTokenizer.from_pretrained(folder)
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        model = models.wrap(network, tokenizer, str(folder))
        weights = _fill(model, manifest, tensors)
    except NpftError:
        raise
    except Exception as error:
        raise NpftError(
            f"{str(folder)!r} holds no packed checkpoint that npft can read: "
            f"{str(error).splitlines()[0] if str(error) else type(error).__name__}"
        ) from error
    network.to(models.pick_device(device))
    return QuantizedModel(
        model,
        weights,
        manifest["quantizer"],
        manifest["bits"],
        manifest["group_size"],
        notes=tuple(manifest.get("notes", ())),
        variant=manifest.get("variant", ""),
    )


def _unquantized(quantized: QuantizedModel) -> dict[str, Tensor]:
    """Parameters and saved buffers beside the packed weights, each tied one once."""
    network = quantized.model.network
    packed = {id(layer.module.weight) for layer in quantized.model.layers.values()}
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, value in network.state_dict(keep_vars=True).items():
        if id(value) not in packed and id(value) not in seen:
            seen.add(id(value))
            tensors[name] = value.detach().cpu().contiguous()
    return tensors


def _fill(
    model: LanguageModel, manifest: dict[str, Any], tensors: dict[str, Tensor]
) -> dict[str, PackedWeight]:
    weights: dict[str, PackedWeight] = {}
    for name, entry in manifest["layers"].items():
        layer = model.layers.get(name)
        if layer is None:
            raise NpftError(f"the checkpoint quantizes {name}, which the model does not have")
        weights[name] = _unpack_layer(name, entry, manifest, tensors)
        if weights[name].shape != tuple(layer.weight.shape):
            raise NpftError(f"layer {name} has shape {weights[name].shape} in the checkpoint")
        layer.weight.copy_(weights[name].dequantize())
    rest = {n: t for n, t in tensors.items() if n.rpartition(".")[0] not in manifest["layers"]}
    rest |= {n: t for n, t in tensors.items() if n.endswith(".bias")}
    missing = set(model.network.load_state_dict(rest, strict=False).missing_keys)
    missing -= {f"{name}.weight" for name in weights} | _tied(model)
    if missing:
        raise NpftError(f"the checkpoint lacks {sorted(missing)[0]}")
    return weights


def _tied(model: LanguageModel) -> set[str]:
    """Names that share a tensor with another: filled through that one."""
    state = model.network.state_dict(keep_vars=True)
    first: dict[int, str] = {}
    return {name for name, value in state.items() if first.setdefault(id(value), name) != name}


def _unpack_layer(
    name: str, entry: dict[str, Any], manifest: dict[str, Any], tensors: dict[str, Tensor]
) -> PackedWeight:
    bits = int(manifest["bits"])
    sparse = _sparse(name, tensors)
    codes = unpack(tensors[f"{name}.codes"], bits, int(entry["in_features"]))
    if entry["layout"] == CodebookWeight.layout:
        codebook = tensors[f"{name}.codebook"]
        if codebook.shape != (codes.shape[0], 2**bits):
            raise NpftError(f"layer {name} has a codebook of shape {tuple(codebook.shape)}")
        return CodebookWeight(codes, codebook, bits, sparse)
    if entry["layout"] == UniformWeight.layout:
        group = int(manifest["group_size"])
        scale, zero = tensors[f"{name}.scale"], tensors[f"{name}.zero"].to(torch.uint8)
        g_idx = tensors.get(f"{name}.g_idx")
        return UniformWeight(codes, scale, zero, bits, group, g_idx, sparse)
    raise NpftError(f"layer {name} has the unknown layout {entry['layout']!r}")


def _sparse(name: str, tensors: dict[str, Tensor]) -> SparsePart | None:
    if f"{name}.sparse_values" not in tensors:
        return None
    parts = ("row_offsets", "columns", "values")
    return SparsePart(*(tensors[f"{name}.sparse_{part}"] for part in parts))
