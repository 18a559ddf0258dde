"""Scores that are broken, or of another model, are refused before they are used."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from refusals import refusal
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import tiny_model, tiny_tokens
from torch import Tensor

from npft import stages
from npft.folder import RunFolder
from npft.ledger import Ledger
from npft.progress import Silent
from npft.scorers import Fisher
from npft.stages import Workspace

LAYER = "model.layers.0.mlp.up_proj"
CHOSEN, KEPT, LARGEST = (f"{name}.safetensors" for name in ("outliers", "sensitivities", "largest"))

Tensors = dict[str, Tensor]
Change = Callable[[Tensors, dict[str, str]], object]


@pytest.fixture
def work(tmp_path: Path) -> Workspace:
    model = tiny_model(num_hidden_layers=1)
    ledger = Ledger(RunFolder(tmp_path), Silent())
    found = Workspace(ledger, model, tiny_tokens(2), {}, Fisher(), 2, 0, Silent())
    stages.score(found, 0.1, "matrix", keep=True).ensure()
    return found


def put(key: str, place: int, value: float) -> Change:
    def change(tensors: Tensors, _: dict[str, str]) -> None:
        tensors[key][place] = value

    return change


def made(key: str, make: Callable[[Tensor], Tensor]) -> Change:
    return lambda tensors, _: tensors.update({key: make(tensors[key]).contiguous()})


def about(**words: str) -> Change:
    return lambda _, metadata: metadata.update(words)


@pytest.mark.parametrize(
    ("name", "change", "part"),
    [
        (CHOSEN, put(LAYER, 0, -1), "outside its matrix"),
        (CHOSEN, put(LAYER, -1, 64 * 32), "outside its matrix"),
        (CHOSEN, put(LAYER, 0, 1000), "out of order"),
        (CHOSEN, made(LAYER, Tensor.double), "float64"),
        (CHOSEN, made(LAYER, lambda t: t[None]), "no list of int64"),
        (CHOSEN, lambda tensors, _: tensors.pop(LAYER), LAYER),
        (CHOSEN, about(gamma="nan"), "gamma"),
        (CHOSEN, about(gamma="much"), "much"),
        (CHOSEN, about(everything="[" * 100_000), "not hold scores"),
        (CHOSEN, lambda _, metadata: metadata.clear(), "no metadata"),
        (KEPT, put(LAYER, 0, -1.0), "negative or not finite"),
        (KEPT, made(LAYER, lambda t: t / 0), "negative or not finite"),
        (KEPT, made(LAYER, Tensor.t), "no float32 of the layer's shape"),
        (LARGEST, put(f"{LAYER}.positions", 0, 2**40), "outside its matrix"),
        (LARGEST, made(f"{LAYER}.values", lambda t: t[:0]), "other values"),
        (LARGEST, about(total="inf"), "total is not finite"),
        (LARGEST, about(layers="[]"), "not the model's"),
        (LARGEST, lambda tensors, _: tensors.pop(f"{LAYER}.values"), f"{LAYER}.values"),
    ],
)
def test_broken_scores(name: str, change: Change, part: str, work: Workspace) -> None:
    file = work.folder / "scores" / name
    tensors = load_file(file)
    with safe_open(file, framework="pt") as stored:
        metadata: Any = dict(stored.metadata() or {})
    change(tensors, metadata)
    save_file(tensors, file, metadata=metadata or None)
    refusal(lambda: stages.load_scored(work)(), name, part, "run npft score again")


@pytest.mark.parametrize("name", [CHOSEN, KEPT, LARGEST])
def test_files_that_are_no_safetensors(name: str, work: Workspace) -> None:
    (work.folder / "scores" / name).write_bytes(b"\xff" * 100)
    refusal(lambda: stages.load_scored(work)(), name, "run npft score again")


def test_a_shape_of_too_many_dimensions(work: Workspace) -> None:
    """safetensors knows no limit, and torch one of 64."""
    file = work.folder / "scores" / KEPT
    header = json.dumps({LAYER: {"dtype": "F32", "shape": [0] * 65, "data_offsets": [0, 0]}})
    file.write_bytes(struct.pack("<Q", len(header)) + header.encode())
    refusal(lambda: stages.load_scored(work)(), KEPT, "run npft score again")


def test_scores_of_another_model(work: Workspace, tmp_path: Path) -> None:
    other = tiny_model(num_hidden_layers=1, intermediate_size=32)
    changed = Workspace(work.ledger, other, tiny_tokens(2), {}, Fisher(), 2, 0, Silent())
    refusal(lambda: stages.load_scored(changed)(), "scores of this model")
    assert torch.equal(*(stages.load_scored(work)().outliers[LAYER].indices() for _ in range(2)))
