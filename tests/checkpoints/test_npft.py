import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import CONFIGS, tiny_model, tiny_tokens

from npft import checkpoints
from npft.contracts import Quantizer
from npft.errors import NpftError
from npft.quantizers import KMeans
from npft.quantizers.rtn import RTN

QUANTIZERS = [RTN(bits=4), RTN(bits=3, group_size=16), KMeans(bits=3), KMeans(bits=2)]


def _saved(quantizer: Quantizer, folder: Path, architecture: str = "Llama"):
    model = tiny_model(architecture)
    ones = {name: torch.ones_like(layer.weight) for name, layer in model.layers.items()}
    quantized = quantizer.quantize(model, [], ones)
    quantized.save(folder)
    return quantized


def _logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model.network(input_ids=tiny_tokens()).logits


@pytest.mark.parametrize("architecture", CONFIGS)
def test_checkpoint_of_every_architecture_gives_the_same_logits(architecture, tmp_path) -> None:
    quantized = _saved(RTN(bits=4), tmp_path / "q", architecture)
    loaded = checkpoints.load(tmp_path / "q", device="cpu")
    assert torch.equal(_logits(loaded.model), _logits(quantized.model))


@pytest.mark.parametrize("quantizer", QUANTIZERS, ids=lambda q: f"{q.name}-{q.bits}")
def test_round_trip_keeps_codes_tables_and_bits(quantizer, tmp_path) -> None:
    quantized = _saved(quantizer, tmp_path / "q")
    loaded = checkpoints.load(tmp_path / "q", device="cpu")
    assert loaded.label == quantized.label
    assert loaded.average_bits == quantized.average_bits
    for name, weight in quantized.weights.items():
        assert torch.equal(loaded.weights[name].codes, weight.codes)
        for table, values in weight.tables().items():
            assert torch.equal(loaded.weights[name].tables()[table], values)
    assert torch.equal(_logits(loaded.model), _logits(quantized.model))


def test_codes_on_disk_take_their_bits(tmp_path) -> None:
    quantized = _saved(RTN(bits=3), tmp_path / "q")
    stored = load_file(tmp_path / "q" / checkpoints.WEIGHTS)
    for name, weight in quantized.weights.items():
        out_features, in_features = weight.shape
        assert stored[f"{name}.codes"].numel() == out_features * -(-in_features * 3 // 8)
        assert f"{name}.weight" not in stored


def _break(folder: Path, what: str) -> None:
    file = folder / checkpoints.WEIGHTS
    tensors = load_file(file)
    name = "model.layers.0.mlp.up_proj"
    if what == "codebook":
        tensors[f"{name}.codebook"] = tensors[f"{name}.codebook"][:, :-1].contiguous()
    elif what == "codes":
        tensors[f"{name}.codes"] = tensors[f"{name}.codes"][:, :-1].contiguous()
    elif what == "rows":
        tensors[f"{name}.codes"] = tensors[f"{name}.codes"][:-1].contiguous()
        tensors[f"{name}.codebook"] = tensors[f"{name}.codebook"][:-1].contiguous()
    elif what == "missing":
        del tensors["model.norm.weight"]
    save_file(tensors, file)
    if what == "truncated":
        file.write_bytes(file.read_bytes()[:-100])
    if what == "layout":
        manifest = json.loads((folder / checkpoints.MANIFEST).read_text())
        manifest["layers"][name]["layout"] = "spiral"
        (folder / checkpoints.MANIFEST).write_text(json.dumps(manifest))


@pytest.mark.parametrize("what", ["codebook", "codes", "rows", "missing", "truncated", "layout"])
def test_broken_checkpoints_are_refused_in_one_line(what, tmp_path) -> None:
    _saved(KMeans(bits=3), tmp_path / "q")
    _break(tmp_path / "q", what)
    with pytest.raises(NpftError) as caught:
        checkpoints.load(tmp_path / "q", device="cpu")
    assert "\n" not in str(caught.value)
