"""Open a checkpoint with AutoGPTQ: ``python own_load.py FOLDER OUT``, in the worker's environment.

``OUT`` gets the logits of the ``tokens`` that lie in ``FOLDER/probe.safetensors``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from auto_gptq import AutoGPTQForCausalLM, BaseQuantizeConfig
from safetensors.torch import load_file, save_file

folder, out = Path(sys.argv[1]), Path(sys.argv[2])
settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))["quantization_config"]
# In a folder, it would look for these in a file of its own only.
config = BaseQuantizeConfig(**{k: settings[k] for k in ("bits", "group_size", "desc_act", "sym")})
model = AutoGPTQForCausalLM.from_quantized(
    str(folder), quantize_config=config, model_basename="model", device="cpu"
)
with torch.inference_mode():
    logits = model.model.float()(input_ids=load_file(folder / "probe.safetensors")["tokens"]).logits
save_file({"logits": logits.float().contiguous()}, out)
