"""Whole runs on a tiny model, through the same entry as the command line's."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import save_tiny, tiny_tokens
from transformers import AutoModelForCausalLM

from npft import checkpoints, config, folder, models, pipeline, stages, steps
from npft.adapters import load_adapter, merge
from npft.errors import NpftError
from npft.plugins import discover
from npft.progress import Silent
from npft.tuning import Tuning

SETTINGS = {
    "samples": 6,
    "context": 32,
    "eval_samples": 3,
    "tuning": {"epochs": 1, "batch_size": 3, "rank": 4},
    "quant": [{"name": "rtn"}, {"name": "kmeans"}],
    "bits": [4, 3],
    "device": "cpu",
}


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def finished(tiny_folder, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("runs") / "run"
    settings = config.make({**SETTINGS, "model": str(tiny_folder), "output": str(output)})
    pipeline.run(settings, discover())
    return output


def _rows(run: Path) -> list[dict]:
    return json.loads((run / "results.json").read_text())["rows"]


def _values(run: Path) -> dict[tuple, float]:
    return {
        (r["model"], r["quantizer"], r["bits"], r["dataset"], r["metric"]): r["value"]
        for r in _rows(run)
    }


def _adapter_bytes(run: Path, name: str = "adapter") -> bytes:
    return (run / name / "adapter_model.safetensors").read_bytes()


def test_the_run_folder_is_the_designs(finished) -> None:
    for name in ("config.toml", "results.json", "scores", "adapter", "merged", "control"):
        assert (finished / name).exists(), name
    quantized = {path.name for path in (finished / "quantized").iterdir()}
    assert quantized == {"rtn-4", "rtn-3", "kmeans-4", "kmeans-3"}
    assert not list(finished.rglob("*.part"))


def test_one_tuning_fills_the_whole_table(finished) -> None:
    expected = {
        (model, quantizer, bits, "builtin", metric)
        for model in ("original", "control", "tuned")
        for quantizer, bits in [
            ("none", 32),
            ("rtn", 4),
            ("rtn", 3),
            ("kmeans", 4),
            ("kmeans", 3),
        ]
        for metric in ("perplexity", "kl")
    }
    assert set(_values(finished)) == expected
    for row in _rows(finished):
        assert row["tokens"] == 3 * 31
        assert row["context"] == 32
    assert _values(finished)["original", "none", 32, "builtin", "kl"] == 0.0


def test_merged_folder_is_plain_and_is_what_was_measured(finished, tiny_folder) -> None:
    plain = AutoModelForCausalLM.from_pretrained(finished / "merged").eval()
    original = models.load(str(tiny_folder), device="cpu")
    merged = merge(original, load_adapter(finished / "adapter"))
    with torch.no_grad():
        expected = merged.network(input_ids=tiny_tokens()).logits
        assert torch.equal(plain(input_ids=tiny_tokens()).logits, expected)


def test_checkpoints_hold_the_tuned_model_quantized(finished) -> None:
    merged = models.load(str(finished / "merged"), device="cpu")
    loaded = checkpoints.load(finished / "quantized" / "rtn-3", device="cpu")
    quantizer = discover().build("quantizer", "rtn", {"bits": 3})
    again = quantizer.quantize(merged, [])
    for name, weight in again.weights.items():
        assert torch.equal(weight.codes, loaded.weights[name].codes)


def test_config_repeats_a_run_exactly(finished, tmp_path) -> None:
    values = {**config.read(finished / "config.toml"), "output": str(tmp_path / "again")}
    pipeline.run(config.make(values), discover())
    assert _values(tmp_path / "again") == _values(finished)
    assert _adapter_bytes(tmp_path / "again") == _adapter_bytes(finished)
    assert _adapter_bytes(tmp_path / "again", "control") == _adapter_bytes(finished, "control")


def test_config_is_written_in_full(finished) -> None:
    written = config.read(finished / "config.toml")
    assert written["tuning"].keys() == Tuning.model_fields.keys()
    assert written["tuning"]["rank"] == 4
    assert written["sampler"] == {"name": "residual", "quantizers": ["rtn", "kmeans"]}
    rtn = {"name": "rtn", "group_size": 0, "sym": False, "format": "npft"}
    kmeans = {"name": "kmeans", "sparse_sensitivity": 0.0, "sparse_magnitude": 0.0}
    assert written["quant"] == [rtn, kmeans]


def test_stages_alone_give_what_run_gives(finished, tmp_path) -> None:
    values = {**config.read(finished / "config.toml"), "output": str(tmp_path / "staged")}
    settings, catalog = config.make(values), discover()
    steps.score(settings, catalog, Silent())
    steps.tune(settings, catalog, Silent())
    steps.quantize(settings, catalog, Silent(), ("original", "control", "tuned"))
    steps.evaluate(settings, catalog, Silent())
    assert _adapter_bytes(tmp_path / "staged") == _adapter_bytes(finished)
    staged, whole = _values(tmp_path / "staged"), _values(finished)
    assert staged.keys() == whole.keys()
    for key, value in whole.items():
        assert staged[key] == pytest.approx(value, rel=1e-6, abs=1e-9), key


def test_a_quantized_model_as_an_ordinary_float_one(finished, tmp_path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    values = {**config.read(finished / "config.toml"), "output": str(tmp_path / "run")}
    settings, catalog = config.make({**values, "bits": [3]}), discover()
    written = steps.quantize(settings, catalog, Silent(), ("original", "tuned"), as_float=True)
    below = [path.relative_to(tmp_path / "run") for path in written]
    assert Path("dequantized/original/rtn-3") in below
    assert Path("dequantized/kmeans-3") in below
    for path in below:
        if path.parts[0] == "dequantized":
            packed = checkpoints.load(tmp_path / "run" / "quantized" / Path(*path.parts[1:]))
            plain = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / path)
            assert not hasattr(plain.config, "quantization_config")
            for name, layer in packed.model.layers.items():
                assert torch.equal(plain.get_submodule(name).weight, layer.weight)


def test_evaluating_again_replaces_rows_and_keeps_the_others(finished, tmp_path) -> None:
    values = {**config.read(finished / "config.toml"), "output": str(finished)}
    before = _values(finished)
    text = tmp_path / "other.txt"
    text.write_text("Every row of a text that was not there before is added. " * 20)
    settings = config.make({**values, "evaluate": {"other": str(text)}})
    steps.evaluate(settings, discover(), Silent())
    after = _values(finished)
    assert {key: after[key] for key in before} == before
    assert {key[3] for key in after} == {"builtin", "other"}


def test_global_random_state_is_left_alone(tiny_folder, tmp_path) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    values = {**SETTINGS, "model": str(tiny_folder), "output": str(tmp_path / "r"), "bits": [4]}
    pipeline.run(config.make(values), discover())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("step", "part"), [(steps.tune, "run npft score first"), (steps.evaluate, "no run folder")]
)
def test_steps_out_of_order_say_what_comes_first(step, part, tiny_folder, tmp_path) -> None:
    output = tmp_path / "r"
    values = {**SETTINGS, "model": str(tiny_folder), "output": str(output)}
    if step is steps.tune:
        output.mkdir()
        (output / "config.toml").write_text("")
    with pytest.raises(NpftError, match=part):
        step(config.make(values), discover(), Silent())


def test_gamma_below_one_shakes_only_outliers(tiny_folder, tmp_path) -> None:
    values = {**SETTINGS, "model": str(tiny_folder), "output": str(tmp_path / "r"), "gamma": 0.05}
    settings = config.make(
        {**values, "sampler": {"name": "step-uniform"}, "quant": [{"name": "rtn"}]}
    )
    steps.score(settings, discover(), Silent())
    stored = load_file(tmp_path / "r" / "scores" / "outliers.safetensors")
    original = models.load(str(tiny_folder), device="cpu")
    assert {n: len(p) for n, p in stored.items()} == {
        n: layer.weight.numel() * 5 // 100 for n, layer in original.layers.items()
    }
    assert not (tmp_path / "r" / "scores" / "sensitivities.safetensors").exists()


def test_the_top_of_the_whole_model(tiny_folder, tmp_path) -> None:
    """The stored positions are the top of all scores; some layers have none, and stages agree."""
    values = {
        **SETTINGS,
        "model": str(tiny_folder),
        "gamma": 0.0005,
        "scope": "model",
        "sampler": {"name": "step-uniform"},
        "tuning": {"epochs": 2, "batch_size": 3, "rank": 2, "rescore": True},
        "quant": [{"name": "rtn"}],
        "bits": [4],
        "control": False,
    }
    whole, staged = (config.make({**values, "output": str(tmp_path / n)}) for n in "ab")
    pipeline.run(whole, discover())
    steps.score(staged, discover(), Silent())
    steps.tune(staged, discover(), Silent())
    assert _adapter_bytes(tmp_path / "a") == _adapter_bytes(tmp_path / "b")

    stored = load_file(tmp_path / "a" / "scores" / "outliers.safetensors")
    parts = pipeline.plan(staged, discover())
    with folder.opened(tmp_path / "b") as kept:
        work = pipeline.workspace(staged, parts, discover(), kept, Silent())
    scores = dict(stages.sensitivities(work, work.model, "score"))
    total = sum(values.numel() for values in scores.values())
    counts = [len(stored[name]) for name in scores]
    assert sum(counts) == total * 5 // 10000
    assert 0 in counts
    least = min(float(scores[n].flatten()[stored[n]].min()) for n in scores if len(stored[n]))
    assert sum(int((values > least).sum()) for values in scores.values()) == sum(counts) - 1
    loaded = stages.load_scored(work)()
    assert (loaded.gamma, loaded.scope) == (0.0005, "model")
    for name, positions in stored.items():
        assert torch.equal(loaded.outliers[name].indices(), positions)


def test_the_control_has_the_labels_of_the_objective(tiny_folder, tmp_path) -> None:
    adapters = []
    for index, objective in enumerate([("kl", {}), ("cross-entropy", {"labels": "last"})]):
        name, options = objective
        values = {**SETTINGS, "model": str(tiny_folder), "output": str(tmp_path / str(index))}
        settings = config.make({**values, "objective": {"name": name, **options}, "gamma": 0.1})
        steps.score(settings, discover(), Silent())
        steps.tune(settings, discover(), Silent())
        adapters.append(_adapter_bytes(tmp_path / str(index), "control"))
    assert adapters[0] != adapters[1]


@pytest.mark.parametrize("recipe", ["paper", "released"])
def test_a_recipe_runs_and_its_config_reads_back_the_same(recipe, tiny_folder, tmp_path) -> None:
    values = {
        "model": str(tiny_folder),
        "output": str(tmp_path / "r"),
        "recipe": recipe,
        "samples": 2,
        "context": 16,
        "gamma": 0.01,
        "tuning": {"epochs": 2},
        "quant": [{"name": "rtn"}],
        "bits": [4],
        "device": "cpu",
    }
    settings = config.make(values)
    steps.score(settings, discover(), Silent())
    steps.tune(settings, discover(), Silent())
    written = config.make(config.read(tmp_path / "r" / "config.toml"))
    assert written == pipeline.in_full(settings, pipeline.plan(settings, discover()))
    assert written.recipe == recipe
    adapter = load_file(tmp_path / "r" / "adapter" / "adapter_model.safetensors")
    assert any("gate_proj" in name for name in adapter) == (recipe == "paper")
