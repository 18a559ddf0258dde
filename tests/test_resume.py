"""The same command again: what is done is not done again, and what changed is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from listening import Listener, Stopped
from refusals import refusal
from safetensors.torch import load_file
from tiny import save_tiny

from npft import config, folder, pipeline, steps
from npft.artifacts import Report
from npft.ledger import WORK
from npft.plugins import discover

SETTINGS: dict[str, Any] = {
    "samples": 4,
    "context": 32,
    "eval_samples": 2,
    "tuning": {"epochs": 2, "batch_size": 2, "rank": 2},
    "quant": [{"name": "rtn"}, {"name": "kmeans"}],
    "bits": [3],
    "device": "cpu",
}

EVERYTHING = {"score", "control", "tune", "quantize", "eval"}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def undisturbed(model, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("runs") / "run"
    heard, _ = run(model, output)
    assert heard.kinds() == EVERYTHING
    assert not any("again" in note or "already" in note for note in heard.notes)
    return output


@pytest.fixture
def finished(undisturbed, tmp_path) -> Path:
    """A finished run that a test may change."""
    return Path(shutil.copytree(undisturbed, tmp_path / "run"))


def run(
    model: Path, output: Path, stop: tuple[str, int] | None = None, **changes: Any
) -> tuple[Listener, Report]:
    heard = Listener(stop)
    tuning = {**SETTINGS["tuning"], **changes.pop("tuning", {})}
    values = {**SETTINGS, "model": str(model), "output": str(output), "tuning": tuning, **changes}
    return heard, pipeline.run(config.make(values), discover(), heard)


def numbers(output: Path) -> dict[str, Any]:
    results = json.loads((output / "results.json").read_text())
    return {key: results[key] for key in ("rows", "losses", "notes", "sensitivity")}


def bits(output: Path) -> dict[str, Any]:
    """Every tensor that a run has made."""
    files = sorted(output.rglob("*.safetensors"))
    return {
        f"{file.relative_to(output)}/{name}": values.numpy().tobytes()
        for file in files
        for name, values in load_file(file).items()
    }


def test_nothing_is_left_to_do_for_a_finished_run(model, undisturbed, finished) -> None:
    heard, report = run(model, finished)
    assert heard.work == {}
    (note,) = [note for note in heard.notes if "has already" in note]
    assert "has already: scores, control, adapter, merged, sensitivity" in note
    assert "9 measurements" in note
    assert numbers(finished) == numbers(undisturbed)
    first = json.loads((undisturbed / "results.json").read_text())["seconds"]
    assert report.seconds["tune"] == first["tune"]
    assert not (finished / WORK).exists()


@pytest.mark.parametrize(
    "stop",
    [
        ("control", 3),
        ("tune", 3),
        ("quantize kmeans-3", 5),
        ("eval original rtn-3 on builtin", 0),
    ],
    ids=lambda value: str(sorted(value) if isinstance(value, set) else value),
)
def test_an_interrupted_run_goes_on_where_it_was(model, undisturbed, stop, tmp_path) -> None:
    output = tmp_path / "r"
    with pytest.raises(Stopped):
        run(model, output, stop)
    heard, _ = run(model, output)
    order = ["score", "control", "tune", "eval tuned float on builtin"]
    done = order[: order.index(stop[0])] if stop[0] in order else order
    assert not set(done) & set(heard.work)
    if stop == ("control", 3):
        assert heard.work["control"] == 2  # steps of the second epoch
        assert "control goes on after epoch 1 of 2" in heard.notes
    assert numbers(output) == numbers(undisturbed)
    assert bits(output) == bits(undisturbed)
    names = [{str(p.relative_to(o)) for p in o.rglob("*")} for o in (output, undisturbed)]
    assert names[0] == names[1]


@pytest.mark.parametrize(
    ("changes", "kinds", "reason"),
    [
        ({"bits": [4]}, {"quantize", "eval"}, ""),
        ({"quant": [{"name": "rtn"}]}, set(), ""),
        ({"eval_samples": 1}, {"quantize", "eval"}, ""),
        ({"tuning": {"lr": 1e-3}}, EVERYTHING, "adapter is made again: tuning.lr was 0.0005"),
        ({"gamma": 0.5}, EVERYTHING - {"control"}, "scores is made again: gamma was 1.0, is 0.5"),
        ({"samples": 3}, EVERYTHING, "scores is made again: calibration is another"),
    ],
    ids=lambda value: str(sorted(value) if isinstance(value, set) else value),
)
def test_a_changed_option_redoes_what_depends_on_it(
    model, finished, changes, kinds, reason
) -> None:
    """Sensitivities of a model that is quantized again are scored again, as they are not kept."""
    heard, _ = run(model, finished, **changes)
    assert heard.kinds() - {"score"} == kinds - {"score"}
    assert ("score" in heard.work) == ("scores is made again" in " ".join(heard.notes))
    assert any(reason in note for note in heard.notes), heard.notes


def test_the_rest_after_a_change_is_what_a_new_run_has(model, finished, tmp_path) -> None:
    changes = {"bits": [4], "tuning": {"noise_bits": [3]}}
    heard, _ = run(model, finished, **changes)
    assert not {"score", "control"} & heard.work.keys()
    run(model, tmp_path / "fresh", **changes)
    assert numbers(finished) == numbers(tmp_path / "fresh")
    assert bits(finished) == bits(tmp_path / "fresh")


def test_another_model_redoes_everything(finished, tmp_path) -> None:
    other = save_tiny(tmp_path / "other", seed=1)
    heard, _ = run(other, finished)
    assert heard.kinds() == EVERYTHING
    assert any("scores is made again: model is another" in note for note in heard.notes)


def test_a_further_text_is_measured_alone(model, finished, tmp_path) -> None:
    text = tmp_path / "other.txt"
    text.write_text("Only this is new, and only this is measured. " * 20)
    heard, report = run(model, finished, evaluate={"builtin": "builtin", "a/b..": str(text)})
    measured = [label for label in heard.work if label.startswith("eval")]
    assert len(measured) == 9
    assert all(label.endswith("on a/b..") for label in measured)
    assert len(report.rows) == 2 * 18


def test_what_another_adapter_was_quantized_to_does_not_stay(model, finished) -> None:
    heard, _ = run(model, finished, quant=[{"name": "rtn"}], tuning={"lr": 1e-3})
    assert [path.name for path in (finished / "quantized").iterdir()] == ["rtn-3"]
    assert "quantized/kmeans-3 is no longer of this run: removed" in heard.notes


def test_a_part_that_is_gone_is_made_again(model, undisturbed, finished) -> None:
    shutil.rmtree(finished / "merged")
    shutil.rmtree(finished / "quantized" / "rtn-3")
    heard, _ = run(model, finished)
    assert heard.work.keys() == {"quantize rtn-3"}
    assert bits(finished) == bits(undisturbed)


def test_layers_that_are_quantized_are_not_quantized_again(model, tmp_path) -> None:
    output = tmp_path / "r"
    with pytest.raises(Stopped):
        run(model, output, ("quantize kmeans-3", 5))
    kept = list((output / WORK / "quantized").glob("kmeans-3@*/*.safetensors"))
    assert len(kept) == 5
    before = {file: file.stat().st_mtime_ns for file in kept}
    with pytest.raises(Stopped):
        run(model, output, ("quantize kmeans-3", 9))
    now = list((output / WORK / "quantized").glob("kmeans-3@*/*.safetensors"))
    assert len(now) == 9
    assert all(file.stat().st_mtime_ns == written for file, written in before.items())


def test_the_stages_alone_go_on_too(model, undisturbed, finished) -> None:
    values = {**config.read(finished / "config.toml"), "output": str(finished)}
    heard = Listener()
    settings, catalog = config.make(values), discover()
    steps.score(settings, catalog, heard)
    steps.tune(settings, catalog, heard)
    steps.quantize(settings, catalog, heard, ("tuned",))
    report = steps.evaluate(settings, catalog, heard)
    assert heard.work == {}
    assert len(report.rows) == len(numbers(undisturbed)["rows"])


def test_a_folder_without_records_is_not_written_over(model, finished) -> None:
    shutil.rmtree(finished / folder.STAGES)
    before = (finished / "config.toml").read_bytes()
    refusal(lambda: run(model, finished), "has no run to go on with", "another --output")
    assert (finished / "config.toml").read_bytes() == before


def test_a_broken_record_is_one_sentence(model, finished) -> None:
    (finished / folder.STAGES / "scores.json").write_text('{"fingerprint": 3}')
    refusal(lambda: run(model, finished), "scores.json' is no record of npft's", "remove it")
