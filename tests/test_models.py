from __future__ import annotations

import json
import resource
import signal
from pathlib import Path

import pytest
import torch
import transformers
from demonstration import demonstration_model
from refusals import refusal, unprivileged
from tiny import CONFIGS, save_tiny, tiny_model, tiny_network, tiny_tokenizer, tiny_tokens
from tiny_gguf import VOCABULARY, write_gguf
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from npft import models

LLAMA_BLOCK = {
    "self_attn.q_proj": "attention",
    "self_attn.k_proj": "attention",
    "self_attn.v_proj": "attention",
    "self_attn.o_proj": "attention",
    "mlp.gate_proj": "mlp",
    "mlp.up_proj": "mlp",
    "mlp.down_proj": "mlp",
}
BLOCKS: dict[str, tuple[str, dict[str, str]]] = {
    "Llama": ("model.layers", LLAMA_BLOCK),
    "Mistral": ("model.layers", LLAMA_BLOCK),
    "Qwen2": ("model.layers", LLAMA_BLOCK),
    "Gemma": ("model.layers", LLAMA_BLOCK),
    "Phi": (
        "model.layers",
        {
            "self_attn.q_proj": "attention",
            "self_attn.k_proj": "attention",
            "self_attn.v_proj": "attention",
            "self_attn.dense": "attention",
            "mlp.fc1": "mlp",
            "mlp.fc2": "mlp",
        },
    ),
    "GPTNeoX": (
        "gpt_neox.layers",
        {
            "attention.query_key_value": "attention",
            "attention.dense": "attention",
            "mlp.dense_h_to_4h": "mlp",
            "mlp.dense_4h_to_h": "mlp",
        },
    ),
    "OPT": (
        "model.decoder.layers",
        {
            "self_attn.q_proj": "attention",
            "self_attn.k_proj": "attention",
            "self_attn.v_proj": "attention",
            "self_attn.out_proj": "attention",
            "fc1": "mlp",
            "fc2": "mlp",
        },
    ),
    "GPT2": (
        "transformer.h",
        {
            "attn.c_attn": "attention",
            "attn.c_proj": "attention",
            "mlp.c_fc": "mlp",
            "mlp.c_proj": "mlp",
        },
    ),
}


def expected_layers(architecture: str) -> dict[str, str]:
    prefix, block = BLOCKS[architecture]
    return {f"{prefix}.{index}.{name}": kind for index in (0, 1) for name, kind in block.items()}


def logits(network: nn.Module) -> Tensor:
    with torch.no_grad():
        return network(input_ids=tiny_tokens()).logits


# Linear layers


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("architecture", CONFIGS)
def test_linear_layers_are_those_of_the_blocks(architecture: str, tied: bool) -> None:
    model = tiny_model(architecture, tie_word_embeddings=tied)
    found = {name: layer.kind for name, layer in model.layers.items()}
    assert found == expected_layers(architecture)
    assert [layer.name for layer in model.layers.values()] == list(found)
    inside = {layer.weight.data_ptr() for layer in model.layers.values()}
    outside = [m for m in model.network.modules() if isinstance(m, nn.Embedding)]
    outside.append(model.network.get_output_embeddings())
    assert len(outside) == (3 if architecture in ("OPT", "GPT2") else 2)
    assert inside.isdisjoint(module.weight.data_ptr() for module in outside)


def test_projections_around_the_blocks_stay_out() -> None:
    model = tiny_model("OPT", word_embed_proj_dim=16)
    assert isinstance(model.network.get_submodule("model.decoder.project_in"), nn.Linear)
    assert set(model.layers) == set(expected_layers("OPT"))


def test_layers_that_share_a_weight_stay_out() -> None:
    network = tiny_network("Llama")
    one, other = (network.get_submodule(f"model.layers.{i}.mlp.up_proj") for i in (0, 1))
    other.weight = one.weight
    lost = {"model.layers.0.mlp.up_proj", "model.layers.1.mlp.up_proj"}
    assert set(models.find_linear_layers(network)) == set(expected_layers("Llama")) - lost


def test_a_layer_that_is_used_in_two_places_stays_out() -> None:
    network = tiny_network("Llama")
    network.get_submodule("model.layers.1.mlp").up_proj = network.get_submodule(
        "model.layers.0.mlp.up_proj"
    )
    lost = {"model.layers.0.mlp.up_proj", "model.layers.1.mlp.up_proj"}
    assert set(models.find_linear_layers(network)) == set(expected_layers("Llama")) - lost


@pytest.mark.parametrize("architecture", CONFIGS)
def test_a_layers_weight_is_out_by_in_and_writes_through(architecture: str) -> None:
    random = torch.Generator().manual_seed(0)
    for layer in tiny_model(architecture).layers.values():
        assert layer.weight.shape == (layer.out_features, layer.in_features)
        assert not layer.weight.requires_grad
        inputs = torch.randn(5, layer.in_features, generator=random)
        bias = 0.0 if layer.module.bias is None else layer.module.bias
        layer.weight.add_(torch.randn(layer.weight.shape, generator=random))
        layer.weight[0, -1] = 3.0
        with torch.no_grad():
            torch.testing.assert_close(layer.module(inputs), inputs @ layer.weight.T + bias)


def test_wrapping_makes_a_model_fixed_and_deterministic() -> None:
    network = tiny_network("GPT2", resid_pdrop=0.5).train()
    model = models.wrap(network, None)
    assert not any(parameter.requires_grad for parameter in model.network.parameters())
    assert torch.equal(logits(model.network), logits(model.network))


@pytest.mark.parametrize(
    ("network", "part"),
    [
        (nn.Linear(4, 4), "list of decoder blocks"),
        (nn.Sequential(nn.ModuleList([nn.LayerNorm(4)]), nn.Linear(4, 4)), "no linear layers"),
    ],
)
def test_a_network_without_blocks_of_linear_layers_is_refused(
    network: nn.Module, part: str
) -> None:
    refusal(lambda: models.find_linear_layers(network), part)


# Save and load


@pytest.mark.parametrize("architecture", CONFIGS)
def test_a_saved_model_opens_in_transformers_and_predicts_the_same(
    architecture: str, tmp_path: Path
) -> None:
    model = tiny_model(architecture)
    models.save(model, tmp_path / "deep" / "model")
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "deep" / "model")
    assert torch.equal(logits(opened), logits(model.network))
    loaded = models.load(str(tmp_path / "deep" / "model"), device="cpu")
    assert torch.equal(logits(loaded.network), logits(model.network))
    assert list(loaded.layers) == list(model.layers)
    text = "The naïve fox."
    assert loaded.tokenizer(text)["input_ids"] == tiny_tokenizer()(text)["input_ids"]


@pytest.mark.parametrize("dtype", models.DTYPES)
def test_a_model_is_loaded_in_the_dtype_asked_for(dtype: str, tmp_path: Path) -> None:
    model = models.load(str(save_tiny(tmp_path / "tiny")), device="cpu", dtype=dtype)
    asked = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    assert {p.dtype for p in model.network.parameters()} == {asked[dtype]}
    models.save(model, tmp_path / "saved")
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert torch.equal(logits(opened), logits(model.network))


def test_generation_defaults_that_transformers_would_not_save_do_not_stop_saving(
    tmp_path: Path,
) -> None:
    model = tiny_model()
    defaults = model.network.generation_config
    defaults.temperature, defaults.eos_token_id = 0.5, [2, 7]
    with pytest.raises(ValueError, match="temperature"):
        model.network.save_pretrained(tmp_path / "refused")
    models.save(model, tmp_path / "saved")
    assert model.network.generation_config is defaults
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert opened.generation_config.eos_token_id == [2, 7]
    assert opened.generation_config.temperature != 0.5


def test_generation_defaults_are_saved(tmp_path: Path) -> None:
    model = tiny_model()
    defaults = model.network.generation_config
    defaults.do_sample, defaults.temperature = True, 0.5
    models.save(model, tmp_path)
    assert AutoModelForCausalLM.from_pretrained(tmp_path).generation_config.temperature == 0.5


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "model"):
        refusal(
            lambda place=place: models.save(tiny_model(), place), str(place), "cannot be written"
        )
    with unprivileged():
        closed = Path("/proc/model")
        refusal(lambda: models.save(tiny_model(), closed), str(closed), "cannot be written")


def test_weights_for_which_there_is_no_space_are_refused(tmp_path: Path) -> None:
    model = tiny_model()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, limits[1]))
    try:
        refusal(lambda: models.save(model, tmp_path), str(tmp_path), "File too large", "space")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)


def test_a_model_as_a_copy_is_independent() -> None:
    model = tiny_model("GPT2")
    before = logits(model.network)
    copy = model.copy()
    for layer in copy.layers.values():
        layer.weight.zero_()
    assert torch.equal(logits(model.network), before)
    assert not torch.equal(logits(copy.network), before)


# GGUF


@pytest.fixture
def llama() -> transformers.PreTrainedModel:
    return tiny_network("Llama", vocab_size=len(VOCABULARY), tie_word_embeddings=False)


def test_a_float_gguf_is_what_was_written(
    llama: transformers.PreTrainedModel, tmp_path: Path
) -> None:
    model = models.load(str(write_gguf(tmp_path / "tiny.gguf", llama)), device="cpu")
    written, read = llama.state_dict(), model.network.state_dict()
    assert written.keys() == read.keys()
    assert all(torch.equal(read[name], written[name]) for name in written)
    torch.testing.assert_close(logits(model.network), logits(llama), rtol=1e-4, atol=1e-5)
    assert set(model.layers) == set(expected_layers("Llama"))


def q8_0(weight: Tensor) -> Tensor:
    """What Q8_0 keeps: in blocks of 32, multiples of a float16 step of the largest over 127."""
    blocks = weight.reshape(-1, 32)
    step = (blocks.abs().amax(1, keepdim=True) / 127).clamp(min=1e-30)
    return (torch.round(blocks / step) * step.half().float()).reshape(weight.shape)


def test_a_quantized_gguf_is_read_as_float(
    llama: transformers.PreTrainedModel, tmp_path: Path
) -> None:
    model = models.load(str(write_gguf(tmp_path / "tiny.gguf", llama, "Q8_0")), device="cpu")
    read = model.network.state_dict()
    for name, weight in llama.state_dict().items():
        assert read[name].dtype == torch.float32
        torch.testing.assert_close(read[name], q8_0(weight) if weight.dim() == 2 else weight)


def test_a_gguf_without_its_own_output_matrix_has_tied_embeddings(tmp_path: Path) -> None:
    network = tiny_network("Llama", vocab_size=len(VOCABULARY), tie_word_embeddings=True)
    model = models.load(str(write_gguf(tmp_path / "tiny.gguf", network)), device="cpu")
    assert model.network.lm_head.weight is model.network.model.embed_tokens.weight
    assert set(model.layers) == set(expected_layers("Llama"))


@pytest.mark.parametrize("stored", ["F32", "Q8_0"])
@pytest.mark.parametrize("marked", [False, True], ids=["plain", "marked as quantized"])
def test_a_gguf_is_saved_as_an_ordinary_folder(
    marked: bool,
    stored: str,
    llama: transformers.PreTrainedModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if marked:  # as by a version of transformers that cannot be asked for float weights
        monkeypatch.setattr(models, "_dequantized", dict)
    model = models.load(str(write_gguf(tmp_path / "tiny.gguf", llama, stored)), device="cpu")
    check_saved_as_ordinary(model, tmp_path / "plain", "the naïve thin fox <|end|>")
    assert len(model.tokenizer("the")["input_ids"]) == 2
    assert model.tokenizer("<|end|>")["input_ids"] == [VOCABULARY.index("<|end|>")]


def check_saved_as_ordinary(model: models.LanguageModel, folder: Path, text: str) -> None:
    for layer in model.layers.values():
        layer.weight.add_(0.01)
    models.save(model, folder)
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    opened = AutoModelForCausalLM.from_pretrained(folder)
    assert torch.equal(logits(opened), logits(model.network))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer(text)["input_ids"] == model.tokenizer(text)["input_ids"]
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    again = models.load(str(folder), device="cpu")
    assert torch.equal(logits(again.network), logits(model.network))


@pytest.mark.slow
def test_smollm2_as_gguf_is_saved_as_an_ordinary_folder(tmp_path: Path) -> None:
    model = models.load(demonstration_model(), device="cpu")
    assert len(model.layers) == 30 * 7
    check_saved_as_ordinary(model, tmp_path / "plain", "The naïve fox; 42 θ <|im_end|>\n\n  end")


# Devices and dtypes


def test_auto_is_cuda_where_there_is_one() -> None:
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert models.pick_device("auto") == torch.device(expected)
    assert models.pick_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("asked", ["tpu", "", "meta", "mps", "cpu:3", "cuda:", "cuda:-1", "CUDA"])
def test_an_unknown_device_is_refused(asked: str) -> None:
    refusal(lambda: models.pick_device(asked), repr(asked), "auto, cpu, cuda or cuda:N")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA here")
@pytest.mark.parametrize("asked", ["cuda", "cuda:0", "cuda:99"])
def test_cuda_is_refused_where_there_is_none(asked: str, tmp_path: Path) -> None:
    folder = str(save_tiny(tmp_path))
    refusal(lambda: models.load(folder, device=asked), repr(asked), "--device cpu")


def test_a_cuda_device_too_many_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    if not torch.cuda.is_available():
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    count = torch.cuda.device_count()
    assert models.pick_device(f"cuda:{count - 1}") == torch.device("cuda", count - 1)
    refusal(lambda: models.pick_device(f"cuda:{count}"), f"'cuda:{count}'", f"0 to {count - 1}")


def test_an_unknown_dtype_is_refused() -> None:
    refusal(lambda: models.load("someone/model", dtype="int8"), "'int8'", "bfloat16")
