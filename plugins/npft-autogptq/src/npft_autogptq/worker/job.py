"""One job: load the model, check that it is the same model here, quantize it block by block."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from blocks import Blocks
from model import check_probe, load
from safetensors.torch import load_file, save_file
from solver import Settings, Solution, Unsolved, round_to_nearest, solve
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

Say = Callable[[dict[str, Any]], None]


@torch.inference_mode()
def run(folder: Path, say: Say) -> None:
    """Quantize a job folder.

    Raises:
        Refusal: the model cannot be loaded here, or is another model here.
    """
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    device = torch.device(job["device"])
    if device.type == "cuda" and not torch.cuda.is_available():
        say({"note": "autogptq's environment has a torch without CUDA: it ran on the CPU"})
        device = torch.device("cpu")
    if not torch.cuda.is_available():
        # The solver calls it after each layer, whatever the device.
        torch.cuda.synchronize = _nothing_to_wait_for
    network = load(folder / "model", getattr(torch, job["dtype"]), device)
    check_probe(network, load_file(folder / "probe.safetensors"), job["tolerance"])
    tokens = load_file(folder / "tokens.safetensors")
    batches = [tokens[str(index)].to(device) for index in range(len(tokens))]
    settings = Settings(**job["settings"])
    numbers = {name: index for index, name in enumerate(job["layers"])}
    blocks = Blocks(network, job["layers"], batches)
    for names in blocks.quantizable():
        hessian, samples = blocks.hessian(names)
        for name in names:
            module = network.get_submodule(name)
            solution = _solve(name, _weight(module), hessian, samples, settings, say)
            _weight(module).copy_(solution.weight)
            save_file(solution.stored(), folder / "out" / f"{numbers[name]}.safetensors")
            say({"layer": numbers[name]})


def _nothing_to_wait_for(device: object = None) -> None:
    pass


def _weight(module: nn.Module) -> Tensor:
    """The weight as ``(out, in)``: a view."""
    return module.weight.data.T if isinstance(module, Conv1D) else module.weight.data


def _solve(
    name: str, weight: Tensor, hessian: Tensor, samples: int, settings: Settings, say: Say
) -> Solution:
    """GPTQ, or what stands in for it, which is said."""
    if not samples:
        say({"note": f"{name} saw no calibration token: it was rounded to nearest"})
        return round_to_nearest(weight, settings)
    try:
        solution = solve(weight, hessian, samples, settings)
    except Unsolved as why:
        say({"note": f"{name} could not be solved by GPTQ, as {why}: it was rounded to nearest"})
        return round_to_nearest(weight, settings)
    if solution.damping != settings.damp_percent:
        say(
            {
                "note": f"{name} has a Hessian that is not positive definite: its damping was "
                f"raised from {settings.damp_percent:g} to {solution.damping:g}"
            }
        )
    dead = int((hessian.diagonal() == 0).sum())
    if dead:
        say({"note": f"{name} has {dead} inputs that calibration leaves at 0: GPTQ zeroed them"})
    return solution
