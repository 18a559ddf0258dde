"""Models that cannot be worked on: each is refused in one sentence that says what to do."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from refusals import refusal
from safetensors.torch import load_file, save_file
from tiny import save_tiny, tiny_network, tiny_tokenizer

from npft import models

WEIGHTS = "model.safetensors"


def load(folder: Path, **options) -> models.LanguageModel:
    return models.load(str(folder), device="cpu", **options)


@pytest.fixture
def folder(tmp_path) -> Path:
    return save_tiny(tmp_path / "tiny")


def test_missing_folder(tmp_path) -> None:
    refusal(lambda: load(tmp_path / "absent"), "absent", "is not there")


@pytest.mark.parametrize("text", [None, "{", "[]", "nonsense"])
def test_missing_or_broken_config(folder, text) -> None:
    (folder / "config.json").unlink()
    if text is not None:
        (folder / "config.json").write_text(text)
    refusal(lambda: load(folder), "config.json")


def test_no_weights(folder) -> None:
    (folder / WEIGHTS).unlink()
    refusal(lambda: load(folder), "has no weights", "*.safetensors")


def test_pickle_weights_need_the_flag(folder) -> None:
    state = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    torch.save(state, folder / "pytorch_model.bin")
    refusal(lambda: load(folder), "pickle", "--allow-pickle")
    opened = load(folder, allow_pickle=True).network.state_dict()
    assert all(torch.equal(opened[name], value) for name, value in state.items())


@pytest.mark.parametrize("keep", [0, 4, 100, -50])
def test_truncated_safetensors(folder, keep) -> None:
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[:keep])
    refusal(lambda: load(folder), "get it again")


def test_a_weight_that_is_missing_is_not_made_up(folder) -> None:
    state = load_file(folder / WEIGHTS)
    del state["model.layers.1.mlp.up_proj.weight"]
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    refusal(lambda: load(folder), "lacks 1 of its weights", "layers.1.mlp.up_proj")


def test_a_weight_of_another_shape(folder) -> None:
    state = load_file(folder / WEIGHTS)
    name = "model.layers.1.mlp.up_proj.weight"
    state[name] = state[name][:-1].contiguous()
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    refusal(lambda: load(folder), "layers.1.mlp.up_proj")


def test_weights_that_are_not_numbers(folder) -> None:
    state = load_file(folder / WEIGHTS)
    state["model.layers.0.mlp.down_proj.weight"][0, 0] = torch.nan
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    refusal(lambda: load(folder), "not finite", "layers.0.mlp.down_proj")


def test_an_image_model_is_no_causal_language_model(tmp_path) -> None:
    config = transformers.ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
    )
    transformers.ViTModel(config).save_pretrained(tmp_path)
    refusal(lambda: load(tmp_path), "not a causal language model")


def test_bert_with_a_causal_head_still_looks_ahead(tmp_path) -> None:
    config = transformers.BertConfig(
        vocab_size=256,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        is_decoder=False,
    )
    transformers.BertLMHeadModel(config).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    refusal(lambda: load(tmp_path), "not a causal language model")


def test_a_quantized_model_is_not_float(folder) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (folder / "config.json").write_text(json.dumps(config))
    refusal(lambda: load(folder), "already quantized")


def test_an_unknown_architecture(folder) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "spiral"}))
    refusal(lambda: load(folder), "does not know")


def test_no_tokenizer(tmp_path) -> None:
    tiny_network().save_pretrained(tmp_path)
    refusal(lambda: load(tmp_path), "tokenizer")


def test_code_of_the_model_runs_only_when_asked(folder, tmp_path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}}
    (folder / "config.json").write_text(json.dumps(config))
    trace = tmp_path / "ran"
    (folder / "own.py").write_text(f"open({str(trace)!r}, 'w')\n")
    refusal(lambda: load(folder), "--trust-remote-code")
    assert not trace.exists()


@pytest.mark.parametrize("content", [b"", b"GGU", b"RIFF....", b"GGUF", b"GGUF\x03\0\0\0" * 20])
def test_foreign_or_broken_gguf(content, tmp_path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(content)
    refusal(lambda: load(file), "GGUF")


def test_missing_gguf(tmp_path) -> None:
    refusal(lambda: load(tmp_path / "model.gguf"), "is not there")
