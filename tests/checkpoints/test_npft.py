"""npft's own format: kept whole, read by the book, and opened by transformers."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from checkpoint_folders import act_ordered, logits, quantized, stored, with_sparse
from tiny import CONFIGS, tiny_tokens
from transformers import AutoModelForCausalLM

from npft import checkpoints
from npft.artifacts import QuantizedModel, SparsePart
from npft.quantizers import RTN, KMeans, Nonuniform

LAYER = "model.layers.0.mlp.up_proj"


def made(what: str) -> QuantizedModel:
    return {
        "rtn-4": lambda: quantized(RTN(bits=4)),
        "rtn-3-g16-sym": lambda: quantized(RTN(bits=3, group_size=16, sym=True)),
        "rtn-8-g8": lambda: quantized(RTN(bits=8, group_size=8)),
        "kmeans-3": lambda: quantized(KMeans(bits=3)),
        "kmeans-2": lambda: quantized(KMeans(bits=2)),
        "act-order": lambda: act_ordered(quantized(RTN(bits=4, group_size=16))),
        "sparse": lambda: with_sparse(quantized(KMeans(bits=4))),
        "sparse uniform": lambda: with_sparse(quantized(RTN(bits=4))),
        "power": lambda: quantized(Nonuniform(bits=4, group_size=16, search=True)),
    }[what]()


KINDS = [
    "rtn-4",
    "rtn-3-g16-sym",
    "rtn-8-g8",
    "kmeans-3",
    "kmeans-2",
    "act-order",
    "sparse",
    "sparse uniform",
    "power",
]


@pytest.mark.parametrize("what", KINDS)
def test_round_trip_keeps_everything(what, tmp_path) -> None:
    before = replace(made(what), notes=("one layer fell back to RTN",), variant="s0.5%")
    before.save(tmp_path / "q")
    after = checkpoints.load(tmp_path / "q", device="cpu")
    for known in ("label", "notes", "format", "group_size", "average_bits"):
        assert getattr(after, known) == getattr(before, known), known
    for name, weight in before.weights.items():
        assert torch.equal(after.weights[name].codes, weight.codes)
        assert after.weights[name].tables().keys() == weight.tables().keys()
        for table, values in weight.tables().items():
            assert torch.equal(after.weights[name].tables()[table], values)
    assert torch.equal(logits(after.model.network), logits(before.model.network))


@pytest.mark.parametrize("what", ["rtn-3-g16-sym", "kmeans-3", "act-order", "sparse"])
def test_layout_is_as_documented(what, tmp_path) -> None:
    """Read with numpy and loops, from the words of the module's documentation."""
    before = made(what)
    before.save(tmp_path / "q")
    tensors = {name: values.numpy() for name, values in stored(tmp_path / "q").items()}
    settings = json.loads((tmp_path / "q" / "config.json").read_text())["quantization_config"]
    assert settings["quant_method"] == "npft"
    entry = settings["layers"][LAYER]
    codes = tensors[f"{LAYER}.codes"]
    out_features, in_features = before.weights[LAYER].shape
    read = np.zeros((out_features, in_features))
    for i in range(out_features):
        stream = int.from_bytes(codes[i].tobytes(), "little")
        for j in range(in_features):
            code = stream >> j * entry["bits"] & 2 ** entry["bits"] - 1
            if entry["layout"] == "codebook":
                read[i, j] = tensors[f"{LAYER}.codebook"][i, code]
            else:
                group = j // entry["group_size"]
                if entry["act_order"]:
                    group = tensors[f"{LAYER}.g_idx"][j]
                zero = float(tensors[f"{LAYER}.zero"][i, group])
                read[i, j] = (code - zero) * float(tensors[f"{LAYER}.scale"][i, group])
        if entry["sparse"] is not None:
            start, end = tensors[f"{LAYER}.sparse_row_offsets"][i : i + 2]
            for k in range(start, end):
                column = tensors[f"{LAYER}.sparse_columns"][k]
                read[i, column] += tensors[f"{LAYER}.sparse_values"][k]
    np.testing.assert_allclose(read, before.weights[LAYER].dequantize().numpy(), rtol=1e-6)


def test_codes_on_disk_take_their_bits(tmp_path) -> None:
    before = quantized(RTN(bits=3))
    before.save(tmp_path / "q")
    on_disk = stored(tmp_path / "q")
    for name, weight in before.weights.items():
        out_features, in_features = weight.shape
        assert on_disk[f"{name}.codes"].numel() == out_features * -(-in_features * 3 // 8)
        assert f"{name}.weight" not in on_disk


@pytest.mark.parametrize("architecture", CONFIGS)
def test_every_architecture_gives_the_same_logits(architecture, tmp_path) -> None:
    before = with_sparse(quantized(KMeans(bits=3), architecture))
    before.save(tmp_path / "q")
    ours = checkpoints.load(tmp_path / "q", device="cpu").model.network
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "q").eval()
    assert torch.equal(logits(ours), logits(before.model.network))
    assert torch.equal(logits(theirs), logits(before.model.network))


@pytest.mark.parametrize("what", KINDS)
def test_transformers_opens_every_kind(what, tmp_path) -> None:
    before = made(what)
    before.save(tmp_path / "q")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "q").eval()
    assert torch.equal(logits(theirs), logits(before.model.network))


def test_transformers_rounds_once_where_asked_for_16_bits(tmp_path) -> None:
    """Scales are not rounded to bfloat16 before they are multiplied."""
    before = made("rtn-4")
    before.save(tmp_path / "q")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "q", dtype=torch.bfloat16)
    weight = theirs.get_submodule(LAYER).weight
    assert torch.equal(weight, before.weights[LAYER].dequantize().bfloat16())


def test_what_transformers_opened_is_an_ordinary_model(tmp_path) -> None:
    before = made("sparse")
    before.save(tmp_path / "q")
    AutoModelForCausalLM.from_pretrained(tmp_path / "q").save_pretrained(tmp_path / "float")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "float").eval()
    assert "quantization_config" not in json.loads((tmp_path / "float/config.json").read_text())
    assert torch.equal(logits(again), logits(before.model.network))


OPENING = """
{first}
{second}
{third}
network = transformers.AutoModelForCausalLM.from_pretrained({folder!r}).eval()
import torch
torch.save(network(input_ids=torch.tensor({tokens})).logits.detach(), {out!r})
"""
LINES = ("import npft", "import transformers", "import transformers.quantizers.auto")


@pytest.mark.parametrize("order", [(0, 1, 1), (1, 0, 0), (1, 2, 0)], ids=str)
def test_import_npft_is_enough_in_any_order(order, tmp_path) -> None:
    before = made("kmeans-3")
    before.save(tmp_path / "q")
    first, second, third = (LINES[index] for index in order)
    out = str(tmp_path / "logits.pt")
    code = OPENING.format(
        first=first,
        second=second,
        third=third,
        folder=str(tmp_path / "q"),
        tokens=tiny_tokens(2, 16).tolist(),
        out=out,
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    assert torch.equal(torch.load(out), logits(before.model.network))


def test_import_npft_imports_neither_torch_nor_transformers() -> None:
    code = "import npft, sys; print({'torch', 'transformers'} & set(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "set()"


def test_sparse_entries_lie_where_they_are_put() -> None:
    positions = torch.tensor([0, 5, 6, 17])
    part = SparsePart.at(positions, torch.tensor([1.0, 2.0, 3.0, 4.0]), (3, 6))
    dense = torch.zeros(3, 6)
    dense.view(-1)[positions] = torch.tensor([1.0, 2.0, 3.0, 4.0])
    csr = torch.sparse_csr_tensor(part.row_offsets, part.columns, part.values.float(), (3, 6))
    assert torch.equal(csr.to_dense(), dense)
    assert torch.equal(part.positions(6), positions)
    assert torch.equal(part.add_to(torch.ones(3, 6)), dense + 1)
