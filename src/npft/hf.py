"""How transformers opens npft's own checkpoints: ``AutoModelForCausalLM.from_pretrained(folder)``.

``import npft`` sees to it that :func:`register` is called once transformers' registry of
quantizers is imported, and does not import transformers itself.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.quantizers.auto import (
    AUTO_QUANTIZER_MAPPING,
    register_quantization_config,
    register_quantizer,
)
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from npft.checkpoints import npft
from npft.checkpoints.stored import Stored
from npft.errors import NpftError

METHOD = "npft"


class NpftConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """The ``quantization_config`` of a folder in npft's own format."""

    def __init__(self, layers: dict[str, dict[str, Any]], **settings: Any) -> None:
        self.quant_method = METHOD  # type: ignore[assignment]
        # The model that comes of it is an ordinary float one, which can be trained and saved.
        self.dequantize = True
        self.layers = layers
        if settings.get("version") != npft.VERSION:
            raise NpftError(
                f"the folder's layout is of version {settings.get('version')!r}, and this npft "
                f"reads {npft.VERSION}: quantize again, or use the npft that wrote it"
            )


class NpftQuantizer(HfQuantizer):  # type: ignore[misc]
    """Loads packed tensors in the place of each weight, and dequantizes them at the end.

    Raises:
        NpftError: the folder does not fit the model, or has indices out of range.
    """

    requires_calibration = True
    quantization_config: NpftConfig

    def __init__(self, quantization_config: NpftConfig, **options: Any) -> None:
        super().__init__(quantization_config, **options)
        self._dtypes: dict[str, torch.dtype] = {}

    def _process_model_before_weight_loading(self, model: nn.Module, **kwargs: Any) -> None:
        for name, entry in self.quantization_config.layers.items():
            module = _find(model, name)
            kinds = npft.tensor_kinds(entry, _shape(module))
            self._dtypes[name] = module.weight.dtype  # type: ignore[assignment,union-attr]
            module.register_parameter("weight", None)
            _need_no_beginning(model, name)
            for suffix, (shape, dtype) in kinds.items():
                module.register_buffer(suffix, torch.empty(shape, dtype=dtype, device="meta"))

    def _process_model_after_weight_loading(self, model: nn.Module, **kwargs: Any) -> nn.Module:
        for name, entry in self.quantization_config.layers.items():
            module = _find(model, name)
            tensors: dict[str, Tensor] = {}
            for suffix in npft.tensor_kinds(entry, _shape(module)):
                tensors[suffix] = module._buffers.pop(suffix)  # type: ignore[assignment]
            stored = Stored(name, _shape(module), tensors)
            weight = npft.assemble(tensors, entry, stored).dequantize().to(self._dtypes[name])
            module.weight = nn.Parameter(weight.T.contiguous() if _transposed(module) else weight)
        return model

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return True


def register() -> None:
    """Tell transformers of npft's format; a second time does nothing."""
    if METHOD not in AUTO_QUANTIZER_MAPPING:
        register_quantization_config(METHOD)(NpftConfig)
        register_quantizer(METHOD)(NpftQuantizer)


def _need_no_beginning(model: nn.Module, name: str) -> None:
    """Keep a layer's weight, which is not there, from being drawn at random.

    GPT-2's blocks would draw those of their layers, so what contains the layer is marked as well,
    as far as it has no parameters of its own.
    """
    model.get_submodule(name)._is_hf_initialized = True  # type: ignore[assignment]
    while name := name.rpartition(".")[0]:
        around = model.get_submodule(name)
        if next(around.parameters(recurse=False), None) is None:
            around._is_hf_initialized = True  # type: ignore[assignment]


def _find(model: nn.Module, name: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError as error:
        raise NpftError(
            f"the checkpoint quantizes {name}, which the model does not have"
        ) from error


def _transposed(module: nn.Module) -> bool:
    """Whether it is GPT-2's Conv1D, whose weight is ``(in, out)``."""
    return hasattr(module, "nf")


def _shape(module: nn.Module) -> tuple[int, int]:
    """``(out, in)``."""
    if _transposed(module):
        return int(module.nf), int(module.nx)  # type: ignore[arg-type]
    return int(module.out_features), int(module.in_features)  # type: ignore[arg-type]
