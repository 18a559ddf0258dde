"""The GPTQ layout, version 1: AutoGPTQ's, which GPTQModel, transformers and vLLM open.

Per quantized layer NAME, with a weight ``(out, in)`` and ``w = (code - zero) * scale``:

- ``NAME.qweight``: ``(in * bits / 32, out)`` int32, codes packed along the inputs;
- ``NAME.qzeros``: ``(groups, out * bits / 32)`` int32, zero points *minus one*, along the outputs;
- ``NAME.scales``: ``(groups, out)`` float16;
- ``NAME.g_idx``: ``(in,)`` int32, the group of each input.

A zero point of 0, of a group whose weights are all positive, has nothing to take one from. It is
stored so that GPTQModel, and transformers through it, read it right: they add the one to whole
words, where a 0 borrows from its neighbour, and at 3 bits to each field, modulo 8. Other kernels
may read such a group wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from npft.artifacts import LinearLayer, PackedWeight, QuantizedModel, UniformWeight
from npft.checkpoints import words
from npft.checkpoints.format import Format
from npft.checkpoints.stored import Stored
from npft.checkpoints.uniform import in_order, only_uniform, symmetric
from npft.errors import NpftError

WIDTHS = (2, 3, 4, 8)

# GPTQModel opens asymmetric grids of this version only from writers whose zero points cannot
# overflow when one is taken from them, and knows of one: itself, since this release.
_AS_GPTQMODEL = "gptqmodel:0.9.0"


class GptqFormat(Format):
    """The GPTQ layout."""

    method: ClassVar[str] = "gptq"

    def refusal(self, layer: LinearLayer, bits: int) -> str | None:
        if bits not in WIDTHS:
            return f"GPTQ's layout has no {bits} bits, but 2, 3, 4 and 8"
        for count, what in ((layer.in_features, "inputs"), (layer.out_features, "outputs")):
            if not words.fill_whole(count, bits):
                return f"{count} {what} of {layer.name} at {bits} bits fill no whole 32-bit words"
        return None

    def settings(self, quantized: QuantizedModel) -> dict[str, Any]:
        weights = [only_uniform(weight) for weight in quantized.weights.values()]
        return {
            "quant_method": self.method,
            "bits": quantized.bits,
            "group_size": quantized.group_size or -1,
            "desc_act": any(weight.g_idx is not None for weight in weights),
            "sym": all(symmetric(weight) for weight in weights),
            "lm_head": False,
            "checkpoint_format": "gptq",
            "pack_dtype": "int32",
            "meta": {"quantizer": ["npft", _AS_GPTQMODEL]},
        }

    def pack(self, weight: PackedWeight, settings: Mapping[str, Any]) -> dict[str, Tensor]:
        weight = only_uniform(weight)
        return {
            "qweight": words.pack(weight.codes, weight.bits).T,
            "qzeros": _less_one(weight.zero.T, weight.bits),
            "scales": weight.scale.T,
            "g_idx": in_order(weight) if weight.g_idx is None else weight.g_idx,
        }

    def unpack(self, stored: Stored, settings: Mapping[str, Any]) -> PackedWeight:
        bits, group_size = int(settings["bits"]), max(int(settings["group_size"]), 0)
        out_features, in_features = stored.shape
        groups = -(-in_features // (group_size or in_features))
        packed = stored.take("qweight", (in_features * bits // 32, out_features), torch.int32)
        codes = words.unpack(packed.T, bits)
        qzeros = stored.take("qzeros", (groups, out_features * bits // 32), torch.int32)
        version = settings.get("checkpoint_format", "gptq")
        if version not in ("gptq", "gptq_v2"):
            raise NpftError(
                f"its checkpoint_format is {version!r}, and npft reads gptq and gptq_v2"
            )
        zero = words.unpack(qzeros, bits) if version == "gptq_v2" else _plus_one(qzeros, bits)
        scales = stored.take("scales", (groups, out_features), torch.float16)
        g_idx = stored.take("g_idx", (in_features,), torch.int32, torch.int64).int()
        scale, zero = scales.T.contiguous(), zero.T.contiguous()
        weight = UniformWeight(codes, scale, zero, bits, group_size, g_idx)
        whole = in_features % (group_size or in_features) == 0
        return (
            replace(weight, g_idx=None)
            if whole and torch.equal(g_idx, in_order(weight))
            else weight
        )


def _less_one(zero: Tensor, bits: int) -> Tensor:
    if bits == 3:
        return words.pack((zero - 1) & 7, bits)
    return words.pack(zero, bits) - words.pack(torch.ones_like(zero), bits)


def _plus_one(qzeros: Tensor, bits: int) -> Tensor:
    less = words.unpack(qzeros, bits)
    if bits == 3:
        return (less + 1) & 7
    return words.unpack(qzeros + words.pack(torch.ones_like(less), bits), bits)
