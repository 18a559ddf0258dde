"""GPTQModel's solver on one layer, watched by the worker: ``python one_layer.py WORKER CASE OUT``.

Run in a process of its own, as GPTQModel changes the one that imports it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, sys.argv[1])

import torch
from gptqmodel import QuantizeConfig
from gptqmodel.looper.named_module import NamedModule
from gptqmodel.quantization.gptq import GPTQ
from safetensors.torch import save_file
from solver import Watch

case, out = sys.argv[2], Path(sys.argv[3])
linear = torch.nn.Linear(32, 16, bias=False)
weight = torch.randn(16, 32, generator=torch.Generator().manual_seed(0))
linear.weight.data = weight.clone()
config = QuantizeConfig(bits=4, group_size=-1, sym=False, act_group_aware=False)
solver = GPTQ(NamedModule(linear, "linear", "block.linear", 0), config)
solver.quantizer.configure(perchannel=True)
inputs = torch.randn(1, 64, 32, generator=torch.Generator().manual_seed(1))
if case != "unreached":
    solver.add_batch(inputs, None)
solver.expected_nsamples = 100_000 if case == "few" else 64
if case == "nan":
    # A factor that overflowed: GPTQModel finds the loss NaN, and tries again without a Hessian.
    solver.hessian_inverse = lambda hessian: (hessian * torch.nan, 0.05)
said: list[dict[str, object]] = []
settings = {"bits": 4, "damp_percent": solver.qcfg.damp_percent}
with Watch(["block.linear"], settings, out, said.append), torch.inference_mode():
    solver.quantize()
save_file({"weight": weight}, out / "weight.safetensors")
(out / "said.json").write_text(json.dumps(said))
