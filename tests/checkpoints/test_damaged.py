"""Checkpoints with a part out of shape or range are refused, by npft and through transformers."""

from __future__ import annotations

import json
import math
import resource
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from checkpoint_folders import act_ordered, quantized, with_sparse
from refusals import refusal
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from npft import checkpoints
from npft.artifacts import QuantizedModel
from npft.checkpoints import MANIFEST, WEIGHTS
from npft.errors import NpftError
from npft.quantizers import RTN, KMeans

LAYER = "model.layers.0.mlp.up_proj"


def rtn(form: str) -> QuantizedModel:
    small: dict[str, Any] = {"num_hidden_layers": 1}
    return replace(quantized(RTN(bits=4, group_size=16), **small), format=form)


MADE: dict[str, Callable[[], QuantizedModel]] = {
    "sparse": lambda: with_sparse(quantized(KMeans(bits=3), num_hidden_layers=1)),
    "act-order": lambda: act_ordered(rtn("npft")),
    "gptq": lambda: rtn("gptq"),
    "awq": lambda: rtn("awq"),
    "compressed-tensors": lambda: rtn("compressed-tensors"),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def folder(what: str) -> Path:
        if what not in made:
            made[what] = tmp_path_factory.mktemp(what)
            MADE[what]().save(made[what])
        return made[what]

    return folder


def broken(folder: Path, into: Path, suffix: str, change: Callable[[Tensor], Tensor]) -> Path:
    """A copy of a checkpoint with one tensor of LAYER changed."""
    shutil.copytree(folder, into, dirs_exist_ok=True)
    tensors = load_file(folder / WEIGHTS)
    tensors[f"{LAYER}.{suffix}"] = change(tensors[f"{LAYER}.{suffix}"]).contiguous()
    save_file(tensors, into / WEIGHTS, metadata={"format": "pt"})
    return into


def configured(folder: Path, into: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """A copy of a checkpoint with its config.json changed."""
    shutil.copytree(folder, into, dirs_exist_ok=True)
    config = json.loads((into / "config.json").read_text())
    change(config)
    (into / "config.json").write_text(json.dumps(config))
    return into


def of_layer(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """Another value among what npft's format says of LAYER."""

    def change(config: dict[str, Any]) -> None:
        config["quantization_config"]["layers"][LAYER][name] = value

    return change


def put(value: float, place: int = 0) -> Callable[[Tensor], Tensor]:
    def change(tensor: Tensor) -> Tensor:
        tensor.view(-1)[place] = value
        return tensor

    return change


CASES: list[tuple[str, str, Callable[[Tensor], Tensor], str]] = [
    ("sparse", "codes", lambda t: t[:, :-1], "codes is uint8 [64, 11]"),
    ("sparse", "codes", lambda t: t.int(), "codes is int32"),
    ("sparse", "codebook", lambda t: t[:, :4], "codebook is float16 [64, 4]"),
    ("sparse", "codebook", put(math.nan), "a codebook that is not finite"),
    ("sparse", "sparse_columns", put(32), "columns outside 0..31"),
    ("sparse", "sparse_columns", put(-1), "columns outside 0..31"),
    ("sparse", "sparse_row_offsets", put(5, 1), "rows do not add up"),
    ("sparse", "sparse_row_offsets", put(10**6, -1), "rows do not add up"),
    ("sparse", "sparse_values", put(math.inf), "values that are not finite"),
    ("act-order", "g_idx", put(2), "groups outside 0..1"),
    ("act-order", "scale", put(math.nan), "a scale that is not finite"),
    ("act-order", "zero", put(16), "zero points that 4 bits do not hold"),
    ("gptq", "g_idx", put(-1), "groups outside 0..1"),
    ("gptq", "scales", put(math.inf), "a scale that is not finite"),
    ("gptq", "qweight", lambda t: t[:-1], "qweight is int32 [3, 64]"),
    ("awq", "scales", put(math.nan), "a scale that is not finite"),
    ("awq", "qzeros", lambda t: t[:1], "qzeros is int32 [1, 8]"),
    ("compressed-tensors", "weight_scale", put(math.nan), "scale"),
    ("compressed-tensors", "weight_shape", put(2**40), "has shape"),
]


@pytest.mark.parametrize(("what", "suffix", "change", "part"), CASES)
def test_it_is_refused_before_it_is_used(what, suffix, change, part, folders, tmp_path) -> None:
    if what == "compressed-tensors":
        pytest.importorskip("compressed_tensors")
    folder = broken(folders(what), tmp_path, suffix, change)
    refusal(lambda: checkpoints.load(folder, device="cpu"), LAYER, part, str(folder))


@pytest.mark.parametrize(
    ("what", "suffix", "change", "part"),
    [case for case in CASES if case[0] in ("sparse", "act-order") and "is " not in case[3]],
)
def test_through_transformers_too(what, suffix, change, part, folders, tmp_path) -> None:
    folder = broken(folders(what), tmp_path, suffix, change)
    with pytest.raises(NpftError, match=part.replace(".", r"\.")):
        AutoModelForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"quantizer": "../../../elsewhere"},
        {"variant": "/etc"},
        {"bits": 4.5},
        {"bits": 4000},
        {"group_size": -1},
        {"notes": "one"},
        {"quantizer": "\x1b[31m"},
        {"quantizer": None},
    ],
)
def test_a_manifest_names_no_other_place(changes, folders, tmp_path) -> None:
    """Its words become part of the names of files."""
    folder = broken(folders("sparse"), tmp_path, "codes", lambda codes: codes)
    known = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**known, **changes}))
    refusal(lambda: checkpoints.load(folder, device="cpu"), str(folder), next(iter(changes)))


@pytest.mark.parametrize("size", ["x", 5, -1, 10**30, None, [16]])
def test_a_group_size_that_is_none_is_refused(size: Any, folders, tmp_path) -> None:
    folder = configured(folders("act-order"), tmp_path, of_layer("group_size", size))
    refusal(lambda: checkpoints.load(folder, device="cpu"), str(folder))


@pytest.mark.parametrize("what", ["sparse", "gptq", "awq"])
@pytest.mark.parametrize(
    ("name", "value"), [("num_hidden_layers", 2**15), ("vocab_size", 2**28), ("hidden_size", 2**20)]
)
def test_more_weights_than_the_file_holds_take_no_memory(
    what, name, value, folders, tmp_path
) -> None:
    folder = configured(folders(what), tmp_path, lambda config: config.update({name: value}))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refusal(lambda: checkpoints.load(folder, device="cpu"), str(folder), "get")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


@pytest.mark.parametrize("bits", [-1, 0, 1, 9, 2**64])
def test_bits_that_no_layout_has(bits: int, folders, tmp_path) -> None:
    folder = configured(folders("sparse"), tmp_path, of_layer("bits", bits))
    refusal(lambda: checkpoints.load(folder, device="cpu"), f"{bits} bits, outside 2..8")
