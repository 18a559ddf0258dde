"""npft's own format: every kind of weight that npft makes.

Per quantized layer NAME, with a weight ``(out, in)``:

- ``NAME.codes``: ``(out, ceil(in * bits / 8))`` uint8, each row a little-endian bit stream in
  which code j occupies the bits ``j * bits .. (j + 1) * bits - 1``;
- layout ``uniform``: ``NAME.scale`` and ``NAME.zero``, ``(out, groups)`` float16 and uint8, so that
  ``w = (code - zero) * scale``; with ``act_order``, ``NAME.g_idx``, ``(in,)`` int32, the group of
  each input, which else is its index divided by the group size;
- layout ``codebook``: ``NAME.codebook``, ``(out, 2**bits)`` float16, so that
  ``w = codebook[row, code]``;
- layout ``power``: ``NAME.scale`` and ``NAME.zero`` as above and ``NAME.power``, ``(out, groups)``
  float16, so that ``w = sign(y) |y|**power`` with ``y = (code - zero) * scale``;
- with ``sparse`` = k, k entries that are added to that, in compressed sparse rows:
  ``NAME.sparse_row_offsets``, ``(out + 1,)`` int32, ``NAME.sparse_columns``, ``(k,)`` int32, and
  ``NAME.sparse_values``, ``(k,)`` float16.

``quantization_config`` is ``{"quant_method": "npft", "version": 2, "bits", "group_size", "layers":
{NAME: {"layout", "bits", "group_size", "act_order", "sparse"}}}``, where ``sparse`` is null without
such a part. ``AutoModelForCausalLM.from_pretrained`` opens it after ``import npft``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from npft.artifacts import (
    CodebookWeight,
    PackedWeight,
    PowerWeight,
    QuantizedModel,
    SparsePart,
    UniformWeight,
    weight_checks,
)
from npft.checkpoints.format import Format
from npft.checkpoints.stored import Stored
from npft.errors import NpftError, abridged
from npft.packed.bits import pack as pack_bits
from npft.packed.bits import unpack as unpack_bits

VERSION = 2

_SPARSE = ("sparse_row_offsets", "sparse_columns", "sparse_values")


class NpftFormat(Format):
    """npft's own format."""

    method: ClassVar[str] = "npft"

    def settings(self, quantized: QuantizedModel) -> dict[str, Any]:
        return {
            "quant_method": self.method,
            "version": VERSION,
            "bits": quantized.bits,
            "group_size": quantized.group_size,
            "layers": {name: entry_of(weight) for name, weight in quantized.weights.items()},
        }

    def pack(self, weight: PackedWeight, settings: Mapping[str, Any]) -> dict[str, Tensor]:
        return {"codes": pack_bits(weight.codes, weight.bits), **weight.tables()}

    def unpack(self, stored: Stored, settings: Mapping[str, Any]) -> PackedWeight:
        if settings.get("version") != VERSION:
            raise NpftError(f"its layout is of version {settings.get('version')!r}, not {VERSION}")
        stored.require(stored.name in settings["layers"], "is neither quantized nor in float")
        entry = settings["layers"][stored.name]
        kinds = tensor_kinds(entry, stored.shape)
        tensors = {name: stored.take(name, *kind) for name, kind in kinds.items()}
        return assemble(tensors, entry, stored)


def entry_of(weight: PackedWeight) -> dict[str, Any]:
    """What the settings say of a layer."""
    return {
        "layout": weight.layout,
        "bits": weight.bits,
        "group_size": getattr(weight, "group_size", 0),
        "act_order": getattr(weight, "g_idx", None) is not None,
        "sparse": None if weight.sparse is None else weight.sparse.values.numel(),
    }


def tensor_kinds(
    entry: Mapping[str, Any], shape: tuple[int, int]
) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Shape and type of every tensor of a layer, by suffix.

    Args:
        entry: the layer's among ``layers`` of the settings.
        shape: ``(out, in)`` of its weight.
    """
    out_features, in_features = shape
    bits, entries = int(entry["bits"]), entry["sparse"]
    if not 2 <= bits <= 8:
        raise NpftError(f"a layer has {abridged(str(bits))} bits, outside 2..8")
    groups = in_features // int(entry["group_size"] or in_features)
    kinds: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
        "codes": ((out_features, -(-in_features * bits // 8)), torch.uint8)
    }
    if entry["layout"] == CodebookWeight.layout:
        kinds["codebook"] = ((out_features, 2**bits), torch.float16)
    elif entry["layout"] == UniformWeight.layout:
        kinds["scale"] = ((out_features, groups), torch.float16)
        kinds["zero"] = ((out_features, groups), torch.uint8)
        if entry["act_order"]:
            kinds["g_idx"] = ((in_features,), torch.int32)
    elif entry["layout"] == PowerWeight.layout:
        kinds["scale"] = kinds["power"] = ((out_features, groups), torch.float16)
        kinds["zero"] = ((out_features, groups), torch.uint8)
    else:
        raise NpftError(f"the layout {entry['layout']!r} is unknown")
    if entries is not None:
        sizes, types = (out_features + 1, entries, entries), (torch.int32, torch.int32, torch.half)
        kinds |= {n: ((size,), t) for n, size, t in zip(_SPARSE, sizes, types, strict=True)}
    return kinds


def assemble(
    tensors: Mapping[str, Tensor], entry: Mapping[str, Any], stored: Stored
) -> PackedWeight:
    """The weight that tensors of the right shapes stand for.

    Raises:
        NpftError: an index is out of range.
    """
    bits, group_size = int(entry["bits"]), int(entry["group_size"])
    codes = unpack_bits(tensors["codes"], bits, stored.shape[1])
    sparse = SparsePart(*(tensors[n] for n in _SPARSE)) if _SPARSE[0] in tensors else None
    if "codebook" in tensors:
        weight: PackedWeight = CodebookWeight(codes, tensors["codebook"], bits, sparse)
    else:
        scale, zero, g_idx = tensors["scale"], tensors["zero"], tensors.get("g_idx")
        if "power" in tensors:
            weight = PowerWeight(codes, scale, zero, tensors["power"], bits, group_size, sparse)
        else:
            weight = UniformWeight(codes, scale, zero, bits, group_size, g_idx, sparse)
    fault = weight_checks.fault(weight)
    stored.require(fault is None, fault or "")
    return weight
