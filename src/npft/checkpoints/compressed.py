"""compressed-tensors' format ``pack-quantized``, written and read by that library.

It is the format of llm-compressor, which transformers and vLLM open. Per quantized layer NAME,
with a weight ``(out, in)``: ``NAME.weight_packed`` int32, ``NAME.weight_scale`` ``(out, groups)``
float16, ``NAME.weight_shape``, and ``NAME.weight_zero_point``, packed along the outputs, unless the
grid is symmetric. Its codes are signed: ours less ``2**(bits - 1)``.

Only 4 and 8 bits: the library packed 3 bits otherwise before version 0.18.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from npft.artifacts import LinearLayer, PackedWeight, QuantizedModel, UniformWeight
from npft.checkpoints.awq import float_linears
from npft.checkpoints.format import Format
from npft.checkpoints.stored import Stored
from npft.checkpoints.uniform import contiguous_groups, symmetric
from npft.errors import NpftError

FORMAT = "pack-quantized"
WIDTHS = (4, 8)


class CompressedTensors(Format):
    """``pack-quantized`` of compressed-tensors."""

    method: ClassVar[str] = "compressed-tensors"

    def refusal(self, layer: LinearLayer, bits: int) -> str | None:
        if importlib.util.find_spec("compressed_tensors") is None:
            return "its library is missing (pip install 'npft[compressed-tensors]')"
        if bits not in WIDTHS:
            return f"pack-quantized is read alike by all versions at 4 and 8 bits, not at {bits}"
        if layer.transposed:
            return f"compressed-tensors knows no Conv1D such as {layer.name}"
        return None

    def settings(self, quantized: QuantizedModel) -> dict[str, Any]:
        from compressed_tensors.quantization import (
            QuantizationArgs,
            QuantizationConfig,
            QuantizationScheme,
        )

        weights = [contiguous_groups(weight) for weight in quantized.weights.values()]
        group_size = quantized.group_size
        args = QuantizationArgs(
            num_bits=quantized.bits,
            type="int",
            symmetric=all(symmetric(weight) for weight in weights),
            strategy="group" if group_size else "channel",
            group_size=group_size or None,
        )
        config = QuantizationConfig(
            config_groups={"group_0": QuantizationScheme(targets=["Linear"], weights=args)},
            format=FORMAT,
            quantization_status="compressed",
            ignore=float_linears(quantized),
        )
        described = {**config.model_dump(mode="json"), "quant_method": self.method}
        # transformers makes no place for packed zero points unless it dequantizes as it loads.
        return described if args.symmetric else {**described, "dequantize": True}

    def pack(self, weight: PackedWeight, settings: Mapping[str, Any]) -> dict[str, Tensor]:
        from compressed_tensors.compressors import pack_to_int32

        weight = contiguous_groups(weight)
        middle = 2 ** (weight.bits - 1)
        tensors = {
            "weight_packed": pack_to_int32(_signed(weight.codes, middle), weight.bits),
            "weight_scale": weight.scale,
            "weight_shape": torch.tensor(weight.shape),
        }
        if not _args(settings)["symmetric"]:
            zero = _signed(weight.zero, middle)
            tensors["weight_zero_point"] = pack_to_int32(zero, weight.bits, packed_dim=0)
        return tensors

    def unpack(self, stored: Stored, settings: Mapping[str, Any]) -> PackedWeight:
        if importlib.util.find_spec("compressed_tensors") is None:
            raise NpftError("it needs compressed-tensors: pip install 'npft[compressed-tensors]'")
        from compressed_tensors.compressors import unpack_from_int32

        args = _args(settings)
        bits, group_size = int(args["num_bits"]), int(args.get("group_size") or 0)
        out_features, in_features = stored.shape
        groups, per_word = in_features // (group_size or in_features), 32 // bits
        shape = stored.take("weight_shape", (2,), torch.int64)
        stored.require(tuple(shape.tolist()) == stored.shape, f"has shape {shape.tolist()}")
        columns = -(-in_features // per_word)
        packed = stored.take("weight_packed", (out_features, columns), torch.int32)
        floats = (torch.float16, torch.bfloat16, torch.float32)
        scale = stored.take("weight_scale", (out_features, groups), *floats).to(torch.float16)
        stored.require(bool(scale.isfinite().all()), "has scales that 16 bits do not hold")
        codes = _unsigned(unpack_from_int32(packed, bits, shape), bits)
        zero = torch.full_like(scale, 2 ** (bits - 1), dtype=torch.uint8)
        if not args["symmetric"]:
            rows = -(-out_features // per_word)
            words = stored.take("weight_zero_point", (rows, groups), torch.int32)
            zero = _unsigned(unpack_from_int32(words, bits, scale.shape, packed_dim=0), bits)
        return UniformWeight(codes, scale, zero, bits, group_size)


def _args(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The one scheme for weights.

    Raises:
        NpftError: the checkpoint is of another kind.
    """
    schemes = list(settings["config_groups"].values())
    if settings.get("format") != FORMAT or len(schemes) != 1:
        raise NpftError(f"npft reads {FORMAT} with one group of layers alone")
    args: dict[str, Any] = schemes[0]["weights"]
    if args.get("type") != "int" or args.get("num_bits") not in WIDTHS:
        raise NpftError("npft reads integers of 4 and 8 bits alone")
    return args


def _signed(codes: Tensor, middle: int) -> Tensor:
    return (codes.short() - middle).to(torch.int8)


def _unsigned(codes: Tensor, bits: int) -> Tensor:
    unsigned: Tensor = (codes.short() + 2 ** (bits - 1)).to(torch.uint8)
    return unsigned
