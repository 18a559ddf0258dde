"""Open AWQ checkpoints in other software: ``python opened.py LIBRARY OUT FOLDER...``.

For each folder, ``OUT/NAME-DTYPE.safetensors`` has the logits of ``tiny_tokens(2, 16)``, and for
GPTQModel the weights of each layer ``(out, in)`` as it unpacks them. Run in a process of its own,
as GPTQModel changes the one that imports it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

os.environ["GPTQMODEL_CPU_WORKERS"] = "2"  # Else it opens nothing on two cores.

import gptqmodel
import torch
from gptqmodel.quantization.awq.utils.packing_utils import dequantize_gemm
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).parents[3] / "tests"))
from tiny import tiny_tokens

library, out = sys.argv[1], Path(sys.argv[2])


def opened(folder: Path, dtype: torch.dtype) -> Any:
    if library == "transformers":
        return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, device_map="cpu")
    backend = gptqmodel.BACKEND.AWQ_TORCH
    return gptqmodel.GPTQModel.load(str(folder), device="cpu", dtype=dtype, backend=backend).model


for folder in map(Path, sys.argv[3:]):
    for dtype in (torch.float16, torch.bfloat16):
        network = opened(folder, dtype)
        with torch.inference_mode():
            found = {"logits": network(input_ids=tiny_tokens(2, 16)).logits.float()}
            for name, module in network.named_modules():
                if type(module).__name__ == "AwqTorchLinear":
                    tables = (module.qweight, module.qzeros, module.scales.float())
                    unpacked = dequantize_gemm(*tables, bits=4, group_size=module.group_size)
                    found[name] = unpacked.T.contiguous()
        save_file(found, out / f"{folder.name}-{str(dtype).removeprefix('torch.')}.safetensors")
