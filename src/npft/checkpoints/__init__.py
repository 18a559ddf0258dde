"""Checkpoints of quantized models: plain Hugging Face folders, in one of several formats.

Every folder has the model's ``config.json``, whose ``quantization_config`` says how its weights
are stored, the tokenizer, and ``model.safetensors`` with the parameters that are not quantized
under their own names and a few tensors ``NAME.SUFFIX`` per quantized layer; see the format's
module for which. ``quantization.json`` beside them says what npft made it with; other software
does not need it.
"""

from __future__ import annotations

from npft.checkpoints.formats import FORMATS, check
from npft.checkpoints.layer import load_layer, save_layer
from npft.checkpoints.loading import load
from npft.checkpoints.manifest import MANIFEST
from npft.checkpoints.saving import save
from npft.checkpoints.stored import WEIGHTS

__all__ = ["FORMATS", "MANIFEST", "WEIGHTS", "check", "load", "load_layer", "save", "save_layer"]
