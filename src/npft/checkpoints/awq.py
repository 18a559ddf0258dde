"""AWQ's layout GEMM: AutoAWQ's, which transformers, GPTQModel and vLLM open.

Per quantized layer NAME, with a weight ``(out, in)`` and ``w = (code - zero) * scale``:

- ``NAME.qweight``: ``(in, out / 8)`` int32, 8 codes of 4 bits per word; the nibbles of word c,
  from the lowest, are of outputs ``8 c + (0, 2, 4, 6, 1, 3, 5, 7)``;
- ``NAME.qzeros``: ``(groups, out / 8)`` int32, zero points in the same order;
- ``NAME.scales``: ``(groups, out)`` float16.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from npft.artifacts import (
    LanguageModel,
    LinearLayer,
    PackedWeight,
    QuantizedModel,
    UniformWeight,
)
from npft.checkpoints import words
from npft.checkpoints.format import Format
from npft.checkpoints.stored import Stored
from npft.checkpoints.uniform import contiguous_groups
from npft.errors import NpftError

BITS = 4
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
# By model type, the activation and the layer before it, as in transformers.integrations.awq.
_SCALED = {
    "starcoder2": ("act", "c_fc"),
    "falcon": ("act", "dense_h_to_4h"),
    "mpt": ("act", "up_proj"),
    "gptj": ("act", "fc_in"),
    "gpt_neox": ("act", "dense_h_to_4h"),
    "gpt_bigcode": ("act", "c_fc"),
    "bloom": ("gelu_impl", "dense_h_to_4h"),
}
_INVERSE = sorted(range(8), key=ORDER.__getitem__)


class AwqFormat(Format):
    """The layout GEMM of AWQ."""

    method: ClassVar[str] = "awq"

    def refusal(self, layer: LinearLayer, bits: int) -> str | None:
        if bits != BITS:
            return f"AWQ's layout has no {bits} bits, but 4"
        if layer.transposed:
            return f"what opens AWQ's layout knows no Conv1D such as {layer.name}"
        if layer.out_features % 8:
            return f"the {layer.out_features} outputs of {layer.name} are no multiple of 8"
        return None

    def beside(self, model: LanguageModel) -> dict[str, Tensor]:
        """Scales of 1 for the activations that transformers scales, as AutoAWQ did, unasked."""
        act, linear = _SCALED.get(str(model.network.config.model_type), ("", ""))
        return {
            f"{name}.{act}.scales": torch.ones(getattr(module, linear).out_features)
            for name, module in model.network.named_modules()
            if act and hasattr(module, act) and hasattr(module, linear)
        }

    def settings(self, quantized: QuantizedModel) -> dict[str, Any]:
        return {
            "quant_method": self.method,
            "bits": BITS,
            "group_size": quantized.group_size or -1,
            "zero_point": True,
            "version": "gemm",
            "modules_to_not_convert": float_linears(quantized),
        }

    def pack(self, weight: PackedWeight, settings: Mapping[str, Any]) -> dict[str, Tensor]:
        weight = contiguous_groups(weight)
        return {
            "qweight": _pack(weight.codes.T),
            "qzeros": _pack(weight.zero.T),
            "scales": weight.scale.T,
        }

    def unpack(self, stored: Stored, settings: Mapping[str, Any]) -> PackedWeight:
        if settings.get("version", "gemm") != "gemm" or settings.get("bits") != BITS:
            raise NpftError("npft reads AWQ's layout GEMM of 4 bits alone")
        group_size = max(int(settings["group_size"]), 0)
        out_features, in_features = stored.shape
        groups = in_features // (group_size or in_features)
        qweight = stored.take("qweight", (in_features, out_features // 8), torch.int32)
        qzeros = stored.take("qzeros", (groups, out_features // 8), torch.int32)
        scales = stored.take("scales", (groups, out_features), torch.float16)
        codes, scale, zero = (t.T.contiguous() for t in (_unpack(qweight), scales, _unpack(qzeros)))
        return UniformWeight(codes, scale, zero, BITS, group_size)


def float_linears(quantized: QuantizedModel) -> list[str]:
    """Linear layers that are not quantized, such as ``lm_head``."""
    modules = quantized.model.network.named_modules()
    return [n for n, m in modules if isinstance(m, nn.Linear) and n not in quantized.weights]


def _pack(codes: Tensor) -> Tensor:
    """``(rows, n)`` codes as ``(rows, n / 8)`` words."""
    return words.pack(codes.unflatten(1, (-1, 8))[:, :, ORDER].flatten(1), BITS)


def _unpack(packed: Tensor) -> Tensor:
    codes: Tensor = words.unpack(packed, BITS).unflatten(1, (-1, 8))[:, :, _INVERSE].flatten(1)
    return codes
