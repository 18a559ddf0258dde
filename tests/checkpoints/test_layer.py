"""A quantized layer in a file of its own: what a run keeps of a quantizer that takes long."""

from pathlib import Path

import pytest
import torch
from packed_samples import codebook_weight, uniform_weight
from refusals import refusal
from safetensors.torch import save_file

from npft.checkpoints import load_layer, save_layer
from npft.quantizers import Nonuniform

WEIGHTS = {
    "codebook": codebook_weight(3, 6, 20),
    "codebook with outliers": codebook_weight(4, 6, 64, sparse=0.05),
    "uniform": uniform_weight(3, 6, 20),
    "groups": uniform_weight(4, 6, 32, 8),
    "act-order": uniform_weight(4, 6, 32, 8, shuffled=True),
    "power": Nonuniform(bits=3, group_size=8).quantize_weight(torch.randn(6, 32), None),
}


@pytest.mark.parametrize("kind", WEIGHTS)
def test_a_layer_comes_back_bit_for_bit(kind, tmp_path) -> None:
    weight = WEIGHTS[kind]
    save_layer(weight, tmp_path / "layer")
    found = load_layer(tmp_path / "layer")
    assert type(found) is type(weight)
    assert torch.equal(found.codes, weight.codes)
    assert found.tables().keys() == weight.tables().keys()
    assert all(torch.equal(found.tables()[n], v) for n, v in weight.tables().items())
    assert torch.equal(found.dequantize(), weight.dequantize())
    assert (found.bits, found.storage_bits) == (weight.bits, weight.storage_bits)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-9])


def other(file: Path) -> None:
    save_file({"codes": torch.zeros(2, 2, dtype=torch.uint8)}, file)


def empty(file: Path) -> None:
    file.write_bytes(b"")


@pytest.mark.parametrize("damage", [cut, other, empty])
def test_a_broken_layer_is_one_sentence(damage, tmp_path) -> None:
    save_layer(WEIGHTS["codebook"], tmp_path / "layer")
    damage(tmp_path / "layer")
    refusal(lambda: load_layer(tmp_path / "layer"), "holds no quantized layer", "remove it")
