"""Open a checkpoint with AutoGPTQ: ``python own_load.py FOLDER OUT``, in the worker's environment.

``OUT`` gets the logits of the ``tokens`` that lie in ``FOLDER/probe.safetensors``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from auto_gptq import AutoGPTQForCausalLM
from safetensors.torch import load_file, save_file

folder, out = Path(sys.argv[1]), Path(sys.argv[2])
model = AutoGPTQForCausalLM.from_quantized(
    str(folder), device="cpu", torch_dtype=torch.float32, model_basename="model"
)
with torch.inference_mode():
    logits = model.model.float()(input_ids=load_file(folder / "probe.safetensors")["tokens"]).logits
save_file({"logits": logits.float().contiguous()}, out)
