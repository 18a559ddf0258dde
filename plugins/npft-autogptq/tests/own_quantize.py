"""AutoGPTQ's own ``quantize`` on a job folder, on the CPU: run in the worker's environment.

    python own_quantize.py FOLDER WORKER

It works on ``cuda:0`` and packs with CUDA's layer in mind. Here that device is the CPU, and what it
would pack is written to ``FOLDER/own.safetensors``: ``NAME.codes``, ``NAME.scale``. The grid is the
worker's, with scales rounded to float16; all else is AutoGPTQ's.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

folder = Path(sys.argv[1])
sys.path.insert(0, sys.argv[2])

import auto_gptq.modeling._base as base  # noqa: E402
import auto_gptq.quantization.gptq as solver_of_autogptq  # noqa: E402
from auto_gptq import BaseQuantizeConfig  # noqa: E402
from auto_gptq.modeling.auto import GPTQ_CAUSAL_LM_MODEL_MAP  # noqa: E402
from model import load  # noqa: E402
from solver import StoredScale  # noqa: E402

job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
settings = dict(job["settings"])
settings["group_size"] = settings["group_size"] or -1
network = load(folder / "model", torch.float32, torch.device("cpu"))
tokens = load_file(folder / "tokens.safetensors")
windows = [window for index in range(len(tokens)) for window in tokens[str(index)]]

base.CUDA_0 = torch.device("cpu")
torch.cuda.synchronize = lambda: None
solver_of_autogptq.Quantizer = StoredScale
own = {}


def keep(model, quantizers, **_) -> None:
    modules = dict(model.named_modules())
    for name, (_, scale, zero, g_idx) in quantizers.items():
        weight = modules[name].weight
        weight = weight.T if type(modules[name]).__name__ == "Conv1D" else weight
        where = g_idx.long()
        codes = torch.round(weight / scale[:, where]) + zero[:, where]
        own[f"{name}.codes"] = codes.to(torch.uint8).contiguous()
        own[f"{name}.scale"] = scale.half().contiguous()


base.pack_model = keep
kind = GPTQ_CAUSAL_LM_MODEL_MAP[network.config.model_type]
quantizing = kind(network, False, BaseQuantizeConfig(**settings))
quantizing.quantize([{"input_ids": w, "attention_mask": torch.ones_like(w)} for w in windows])
save_file(own, folder / "own.safetensors")
