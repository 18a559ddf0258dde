"""A kept state of a training that is broken, or of another one, is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from refusals import refusal
from safetensors import safe_open
from safetensors.torch import save_file
from tiny import tiny_model, tiny_tokens
from torch import Tensor

from npft import tuning
from npft.adapters import Adapter
from npft.artifacts import Outliers
from npft.folder import RunFolder
from npft.objectives import KL
from npft.samplers import StepUniform
from npft.stages.training import Epochs
from npft.tuning import Tuning

WEIGHT = "adapter.base_model.model.model.layers.0.mlp.up_proj.lora_A.default.weight"


def train(folder: Path, epochs: int = 2) -> Adapter:
    model = tiny_model(num_hidden_layers=1)
    every = {n: Outliers((x.out_features, x.in_features), None) for n, x in model.layers.items()}
    settings = Tuning(epochs=epochs, rank=2, batch_size=2)
    kept = Epochs(RunFolder(folder))
    return tuning.tune(
        model, tiny_tokens(4), every, StepUniform(), KL(), settings, seed=0, checkpoint=kept
    )


Change = Callable[[dict[str, Tensor], dict[str, Any]], object]


def numbers(**changes: object) -> Change:
    return lambda _, found: found.update(changes)


def group(**changes: object) -> Change:
    return lambda _, found: found["groups"][0].update(changes)


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors, _: tensors[WEIGHT].fill_(math.nan),
        lambda tensors, _: tensors.update({WEIGHT: tensors[WEIGHT][:1]}),
        lambda tensors, _: tensors.pop(WEIGHT),
        lambda tensors, _: tensors.pop("moments.0.exp_avg"),
        lambda tensors, _: tensors.update({"moments.0.exp_avg": torch.zeros(3)}),
        lambda tensors, _: tensors.update({"moments.99.step": torch.zeros(())}),
        lambda tensors, _: tensors.pop("terms"),
        lambda tensors, _: tensors.update(terms=torch.zeros(5)),
        numbers(groups=[]),
        numbers(schedule={"step": 3}),
        numbers(losses=[]),
        numbers(losses=[{"step": "x"}]),
        group(lr=math.nan),
        group(lr="fast"),
        group(betas=[0.9]),
    ],
)
def test_a_broken_state(change: Change, tmp_path: Path) -> None:
    train(tmp_path)
    file = tmp_path / "state.safetensors"
    with safe_open(file, framework="pt") as stored:
        tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        found = json.loads(stored.metadata()["numbers"])
    change(tensors, found)
    save_file({k: v.contiguous() for k, v in tensors.items()}, file, {"numbers": json.dumps(found)})
    refusal(lambda: train(tmp_path), "state of the training", ".work")


def test_a_state_of_more_epochs_than_are_wanted(tmp_path: Path) -> None:
    train(tmp_path, epochs=3)
    refusal(lambda: train(tmp_path, epochs=1), "of 4 steps")
