"""Models that npft cannot work on are refused in one sentence."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from refusals import refusal, unprivileged
from safetensors.torch import load_file, save_file
from tiny import CONFIGS, save_tiny, tiny_model, tiny_network, tiny_tokenizer
from tiny_gguf import VOCABULARY, write_gguf
from torch import Tensor

from npft import model_checks, models

MATRIX = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """A whole model folder, to be broken."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "broken"))


def refused(source: Path, *parts: str, **options: bool | str) -> None:
    refusal(
        lambda: models.load(str(source), device="cpu", **options),  # type: ignore[arg-type]
        str(source),
        *parts,
    )


def change_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def change_weights(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


# Where the model is


@pytest.mark.parametrize("source", ["", "  "])
def test_no_name_is_refused(source: str) -> None:
    refusal(lambda: models.load(source), "no model was named")


@pytest.mark.parametrize("source", ["./nowhere", "/nowhere/at/all", "~/nowhere"])
def test_a_folder_that_is_not_there_is_refused(source: str) -> None:
    refusal(lambda: models.load(source), "nowhere", "not there", "hub id")


@pytest.mark.parametrize("source", ["/" + "x" * 5000, "~nobody-by-this-name/model", "a\0b"])
def test_an_impossible_path_is_refused(source: str) -> None:
    refusal(lambda: models.load(source), repr(source[:10])[:-1])


def test_a_file_in_place_of_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"GGUF")
    refused(tmp_path / "model.bin", "neither a folder nor a .gguf file")


@pytest.mark.parametrize("name", ["config.json", "."])
def test_a_folder_without_permission_is_refused(name: str, folder: Path) -> None:
    os.chmod(folder / name, 0)
    with unprivileged():
        refused(folder, "Permission denied")
    os.chmod(folder / name, 0o700)


@pytest.mark.parametrize(
    ("file", "part"),
    [
        (None, "Hugging Face model was saved in"),
        ("tiny.gguf", "tiny.gguf"),
        ("merged/config.json", "merged"),
        ("adapter_config.json", "adapter"),
    ],
)
def test_another_kind_of_folder_is_refused_with_a_hint(
    file: str | None, part: str, tmp_path: Path
) -> None:
    if file is not None:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text("{}")
    refused(tmp_path, "no config.json", part)


# Configurations


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "not JSON"),
        (b'{"model_type": "llama",', "not JSON"),
        (b"\xff\xfe{}", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "not a JSON object"),
        (b"3", "not a JSON object"),
        (b"{}", "model_type"),
    ],
    ids=["empty", "cut", "not UTF-8", "deep", "list", "number", "nothing in it"],
)
def test_a_broken_config_is_refused(content: bytes, part: str, folder: Path) -> None:
    (folder / "config.json").write_bytes(content)
    refused(folder, "config.json", part)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"model_type": "nonesuch"}, ["architecture", "model_type"]),
        ({"hidden_size": "wide"}, ["hidden_size"]),
        ({"hidden_size": 64}, ["20 weights of another shape"]),
        ({"num_attention_heads": 0}, ["cannot be loaded"]),
        ({"hidden_act": "nonesuch"}, ["nonesuch"]),
        ({"num_hidden_layers": 3}, ["lacks 9 of its weights", "layers.2."]),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, ["already quantized"]),
    ],
)
def test_a_config_that_does_not_fit_is_refused(
    changes: dict[str, object], parts: list[str], folder: Path
) -> None:
    change_config(folder, **changes)
    refused(folder, *parts)


def test_an_empty_quantization_config_is_no_obstacle(folder: Path) -> None:
    change_config(folder, quantization_config=None)
    models.load(str(folder), device="cpu")


# Weights


def test_a_folder_without_weights_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    refused(folder, "no weights", "safetensors")


@pytest.mark.parametrize("content", [b"", b"hello" * 100, None], ids=["empty", "foreign", "cut"])
def test_corrupt_safetensors_are_refused(content: bytes | None, folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-50] if content is None else content)
    refused(folder, "corrupt safetensors", "get it again")


def test_a_missing_weight_is_not_made_up(folder: Path) -> None:
    change_weights(folder, lambda weights: weights.pop(MATRIX))
    refused(folder, "lacks 1 of its weights", MATRIX)


def test_a_weight_of_another_shape_is_refused(folder: Path) -> None:
    change_weights(folder, lambda weights: weights.update({MATRIX: torch.zeros(3, 4)}))
    refused(folder, "1 weights of another shape", MATRIX)


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_a_weight_that_is_not_finite_is_refused(value: float, folder: Path) -> None:
    change_weights(folder, lambda weights: weights[MATRIX][2].fill_(value))
    refused(folder, "not finite", MATRIX)


def test_a_weight_beyond_the_dtype_is_refused(folder: Path) -> None:
    change_weights(folder, lambda weights: weights[MATRIX][2].fill_(1e6))
    models.load(str(folder), device="cpu")
    refused(folder, "not finite", "float16", MATRIX, "float32", dtype="float16")


def test_a_missing_shard_is_refused(tmp_path: Path) -> None:
    tiny_network().save_pretrained(tmp_path, max_shard_size="20KB")
    tiny_tokenizer().save_pretrained(tmp_path)
    models.load(str(tmp_path), device="cpu")
    shard = sorted(tmp_path.glob("model-*.safetensors"))[1]
    shard.unlink()
    refused(tmp_path, shard.name)


# GGUF


@pytest.fixture
def gguf_file(tmp_path: Path) -> Path:
    network = tiny_network("Llama", vocab_size=len(VOCABULARY), tie_word_embeddings=False)
    return write_gguf(tmp_path / "tiny.gguf", network)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.01, 0.1, 0.3, 0.6, 0.9, 0.99])
def test_a_truncated_gguf_is_refused(share: float, gguf_file: Path) -> None:
    whole = gguf_file.read_bytes()
    gguf_file.write_bytes(whole[: int(share * len(whole))])
    refused(gguf_file, "GGUF", "get it again")


def test_a_gguf_that_lacks_a_matrix_is_refused(tmp_path: Path) -> None:
    network = tiny_network("Llama", vocab_size=len(VOCABULARY))
    del network.get_submodule("model.layers.1.mlp").up_proj
    refused(write_gguf(tmp_path / "tiny.gguf", network), "lacks 1", MATRIX)


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"PK\x03\x04" * 99, "does not start with 'GGUF'"),
        (b"GGUF" + b"\xff" * 99, "GGUF file"),
        (b"GGUF\x03\0\0\0" + b"\0" * 16, "general.architecture"),
    ],
    ids=["foreign", "garbage", "nothing in it"],
)
def test_a_file_that_is_no_gguf_is_refused(content: bytes, part: str, tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(content)
    refused(tmp_path / "a.gguf", part, "get it again")


def test_a_gguf_that_is_not_there_is_refused(tmp_path: Path) -> None:
    refused(tmp_path / "a.gguf", "not there")


# Tokenizers


@pytest.mark.parametrize("architecture", CONFIGS)
def test_a_missing_tokenizer_is_refused(architecture: str, tmp_path: Path) -> None:
    save_tiny(tmp_path / "model", architecture)
    for file in (tmp_path / "model").glob("tokenizer*"):
        file.unlink()
    refused(tmp_path / "model", "no tokenizer", "beside its weights")


def test_a_broken_tokenizer_is_refused(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{")
    refused(folder, "no tokenizer", "beside its weights")


# Models of another kind

WIDTH_32 = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 32}
OTHER_KINDS = {
    "vision": lambda: transformers.ViTModel(
        transformers.ViTConfig(**WIDTH_32, num_hidden_layers=1, image_size=32)
    ),
    "encoder-decoder": lambda: transformers.T5Model(
        transformers.T5Config(d_model=32, d_ff=32, num_layers=1, num_heads=2, vocab_size=256)
    ),
    "bidirectional": lambda: transformers.BertForMaskedLM(
        transformers.BertConfig(**WIDTH_32, num_hidden_layers=1, vocab_size=256)
    ),
}


@pytest.mark.parametrize("make", OTHER_KINDS.values(), ids=OTHER_KINDS)
def test_another_kind_of_model_is_refused(
    make: Callable[[], transformers.PreTrainedModel], tmp_path: Path
) -> None:
    make().save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    refused(tmp_path, "not a causal language model", "decoder-only")


@pytest.mark.parametrize("dtype", models.DTYPES)
@pytest.mark.parametrize("architecture", CONFIGS)
def test_a_causal_model_passes(architecture: str, dtype: str) -> None:
    model = tiny_model(architecture)
    model.network.to(models.DTYPES[dtype])
    model_checks.check_causal(model)


def test_more_tokens_than_positions_are_refused() -> None:
    model = tiny_model("GPT2")
    model_checks.check_context(model.network, model.source, 128)
    with torch.no_grad():
        model.network(input_ids=torch.zeros(1, 128, dtype=torch.int64))
        with pytest.raises(IndexError):
            model.network(input_ids=torch.zeros(1, 129, dtype=torch.int64))
    check = lambda: model_checks.check_context(model.network, model.source, 129)  # noqa: E731
    refusal(check, "129", "128", "--context")


def test_a_refusal_is_all_that_is_said(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    logging = transformers.utils.logging
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    change_weights(folder, lambda weights: weights.pop(MATRIX))
    refused(folder)
    assert capfd.readouterr() == ("", "")
    assert before == (logging.get_verbosity(), logging.is_progress_bar_enabled())


# Pickles, remote code and the hub


def to_pickle(folder: Path, content: object = None) -> None:
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights if content is None else content, folder / "pytorch_model.bin")


def test_pickle_weights_need_permission(folder: Path) -> None:
    safe = models.load(str(folder), device="cpu").network.state_dict()
    to_pickle(folder)
    refused(folder, "only pickle weights", "--allow-pickle")
    pickled = models.load(str(folder), device="cpu", allow_pickle=True).network.state_dict()
    assert all(torch.equal(pickled[name], safe[name]) for name in safe)


class Trap:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return (os.mkdir, (str(self.mark),))


def test_a_pickle_that_runs_code_is_refused_even_so(folder: Path, tmp_path: Path) -> None:
    to_pickle(folder, {"model.embed_tokens.weight": Trap(tmp_path / "mark")})
    refused(folder, "pickle weights", "more than tensors", allow_pickle=True)
    assert not (tmp_path / "mark").exists()
    torch.load(folder / "pytorch_model.bin", weights_only=False)
    assert (tmp_path / "mark").exists()


def test_a_corrupt_pickle_is_refused(folder: Path) -> None:
    to_pickle(folder)
    (folder / "pytorch_model.bin").write_bytes(b"garbage")
    refused(folder, "pickle weights", "corrupt", allow_pickle=True)


def run_python(code: str, home: Path) -> list[str]:
    """The lines that some code prints in a new interpreter, with its own cache of the hub."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


OWN_CODE = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM

Path({mark!r}).touch()

class OwnConfig(LlamaConfig):
    model_type = "own"

class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
"""

LOAD_WITH_CODE = """
from npft import models
model = models.load({folder!r}, device="cpu", trust_remote_code=True)
print(type(model.network).__name__, len(model.layers))
"""


def test_a_models_own_code_needs_permission(folder: Path, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    (folder / "own.py").write_text(OWN_CODE.format(mark=str(mark)))
    names = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    change_config(folder, model_type="own", auto_map=names)
    refused(folder, "its own repository", "--trust-remote-code")
    assert not mark.exists()
    assert run_python(LOAD_WITH_CODE.format(folder=str(folder)), tmp_path) == ["OwnModel 14"]
    assert mark.exists()


LOAD_FROM_HUB = """
from npft import models
from npft.errors import NpftError
for name in ("plain", "pickled", "quantized", "nonesuch"):
    try:
        model = models.load("someone/" + name, device="cpu")
        print(model.source, len(model.layers), len(model.tokenizer))
    except NpftError as error:
        print(error)
"""


def cached(model: Path, home: Path, name: str) -> Path:
    """Put a model where the hub library keeps what it has downloaded."""
    place = home / "hub" / f"models--someone--{name}"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("0" * 40)
    return Path(shutil.copytree(model, place / "snapshots" / ("0" * 40)))


def test_a_hub_id_is_loaded_and_checked_like_a_folder(tiny_folder: Path, tmp_path: Path) -> None:
    cached(tiny_folder, tmp_path, "plain")
    to_pickle(cached(tiny_folder, tmp_path, "pickled"))
    quantized = cached(tiny_folder, tmp_path, "quantized")
    change_config(quantized, quantization_config={"quant_method": "awq", "bits": 4})
    loaded, *refusals = run_python(LOAD_FROM_HUB, tmp_path)
    assert loaded == "someone/plain 14 256"
    expected = [
        ("'someone/pickled'", "only pickle weights", "--allow-pickle"),
        ("'someone/quantized'", "already quantized"),
        ("'someone/nonesuch'", "neither a folder here nor"),
    ]
    for sentence, parts in zip(refusals, expected, strict=True):
        assert all(part in sentence for part in parts), sentence


# What the files claim to be


@pytest.mark.parametrize(
    "changes",
    [
        {"vocab_size": 10**9},
        {"hidden_size": 10**8},
        {"intermediate_size": 2**40},
        {"num_hidden_layers": 10**7},
    ],
)
def test_a_configuration_of_more_than_the_files_have(folder: Path, changes) -> None:
    """Before any of that memory is taken, and before millions of layers are built."""
    change_config(folder, **changes)
    refused(folder, "get")


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "a/b", "", "..", 3, None])
def test_an_index_that_leads_elsewhere(folder: Path, name: object) -> None:
    index = {"metadata": {}, "weight_map": {MATRIX: name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(folder, "no file beside it", "trust")


def test_an_index_without_a_map(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text("{}")
    refused(folder, "weight_map")
