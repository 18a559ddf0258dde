"""Open checkpoints in other software: ``python opened.py LIBRARY OUT FOLDER...``.

For each folder, ``OUT/NAME-DTYPE.safetensors`` has the logits of ``tiny_tokens(2, 16)`` and, where
it has a method for that, the weights of each layer ``(out, in)`` as the library unpacks them. Run
in a process of its own, as GPTQModel changes the one that imports it.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ["GPTQMODEL_CPU_WORKERS"] = "2"  # Else it opens nothing on two cores.

import gptqmodel
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, GPTQConfig

sys.path.insert(0, str(Path(__file__).parents[3] / "tests"))
from tiny import tiny_tokens

library, out = sys.argv[1], Path(sys.argv[2])


def opened(folder: Path, dtype: torch.dtype) -> Any:
    if library == "transformers":
        about = json.loads((folder / "config.json").read_text())["quantization_config"]
        chosen = {}
        if about["bits"] == 4 and about["group_size"] == -1 and not about["sym"]:
            # The kernel that GPTQModel 7.6 picks for these on a CPU takes every zero point for 8.
            chosen["quantization_config"] = GPTQConfig(bits=4, backend="gptq_torch")
        return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, device_map="cpu", **chosen)
    backend = gptqmodel.BACKEND.GPTQ_TORCH
    return gptqmodel.GPTQModel.load(str(folder), device="cpu", dtype=dtype, backend=backend).model


for folder in map(Path, sys.argv[3:]):
    for dtype in (torch.float16, torch.bfloat16):
        network = opened(folder, dtype)
        with torch.inference_mode():
            found = {"logits": network(input_ids=tiny_tokens(2, 16)).logits.float()}
            for name, module in network.named_modules():
                if type(module).__name__ == "TorchLinear":
                    found[name] = module.dequantize_weight().T.float().contiguous()
        save_file(found, out / f"{folder.name}-{str(dtype).removeprefix('torch.')}.safetensors")
