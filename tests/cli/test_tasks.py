"""Tasks on the command line, and the harness's own command with the model type npft."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from questions import COUNT, TASKS, reading_model, write_questions
from refusals import refusal

from npft import models
from npft.artifacts import label
from npft.evaluation.harness import evaluate_tasks

MISSING = "import sys; sys.modules['lm_eval'] = None;"


def test_without_the_harness_one_sentence_says_what_to_install(tmp_path) -> None:
    arguments = ["npft", "run", "--model", "m", "--output", "r", "--tasks", "arc_easy,piqa"]
    code = f"{MISSING} sys.argv = {arguments!r}; from npft.cli import main; main()"
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert ran.returncode == 1
    assert ran.stderr.startswith("npft: error: tasks (arc_easy, piqa) were asked for")
    assert "pip install 'npft[lm-eval]'" in ran.stderr
    assert ran.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> dict[str, str]:
    pytest.importorskip("lm_eval")
    data = write_questions(tmp_path_factory.mktemp("data"))
    return {**os.environ, "NPFT_DATA": str(data)}


def _call(environment: dict[str, str], *command: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=300, check=False
    )


@pytest.fixture(scope="module")
def finished(environment, tmp_path_factory) -> Path:
    """A run with tasks, and a checkpoint of the original beside those of the tuned model."""
    folder = tmp_path_factory.mktemp("run")
    models.save(reading_model(), folder / "model")
    flags = ["--samples", "4", "--context", "32", "--eval-samples", "2", "--epochs", "1"]
    flags += ["--quant", "rtn", "--bits", "3", "--bits", "2", "--quiet", "--json"]
    flags += ["--tasks", "piqa_local,arc_easy_local", "--include-path", str(TASKS)]
    run = folder / "run"
    npft = [sys.executable, "-m", "npft"]
    ran = _call(
        environment, *npft, "run", "--model", str(folder / "model"), *flags, "--output", str(run)
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr == ""
    assert json.loads(ran.stdout) == json.loads((run / "results.json").read_text())
    ran = _call(environment, *npft, "quantize", str(run), "--of", "original", "--quiet")
    assert ran.returncode == 0, ran.stderr
    return run


def _rows(run: Path) -> dict[tuple[str, str, str, str], dict[str, Any]]:
    """The rows of tasks, by model, setting, task and metric."""
    found = {}
    for row in json.loads((run / "results.json").read_text())["rows"]:
        if row["questions"]:
            setting = (
                "float" if row["quantizer"] == "none" else label(row["quantizer"], row["bits"])
            )
            found[row["model"], setting, row["dataset"], row["metric"]] = row
    return found


def test_every_model_float_and_quantized_answers(finished) -> None:
    rows = _rows(finished)
    assert set(rows) == {
        (model, setting, task, metric)
        for model in ("original", "control", "tuned")
        for setting in ("float", "rtn-3", "rtn-2")
        for task in ("piqa_local", "arc_easy_local")
        for metric in ("acc", "acc_norm")
    }
    for row in rows.values():
        assert row["questions"] == COUNT
        assert row["stderr"] > 0
    assert len({row["value"] for row in rows.values()}) > 3


def test_the_rows_are_of_the_models_that_the_folder_keeps(finished, environment, monkeypatch):
    monkeypatch.setenv("NPFT_DATA", environment["NPFT_DATA"])
    rows = _rows(finished)
    merged = models.load(str(finished / "merged"), device="cpu")
    for score in evaluate_tasks(merged, ["piqa_local", "arc_easy_local"], TASKS):
        row = rows["tuned", "float", score.task, score.metric]
        assert (row["value"], row["stderr"]) == (score.value, score.stderr)


def test_the_harnesss_own_reports_are_kept(finished) -> None:
    rows = _rows(finished)
    reports = {file.stem: json.loads(file.read_text()) for file in (finished / "lm-eval").iterdir()}
    assert len(reports) == 9
    for (model, setting, task, metric), row in rows.items():
        report = reports[f"{model}-{setting}"]
        assert report["results"][task][f"{metric},none"] == row["value"]
        assert report["config"]["model_args"]["model"] == model


def test_eval_alone_asks_the_folders_models_again(finished, environment, tmp_path) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    before = _rows(run)
    npft = [sys.executable, "-m", "npft", "eval", str(run)]
    tasks = ["--tasks", "piqa_local", "--include-path", str(TASKS), "--limit", "5"]
    ran = _call(environment, *npft, *tasks, "--quiet")
    assert ran.returncode == 0, ran.stderr
    assert "piqa_local (5, 24)" in ran.stdout
    assert ran.stderr == ""
    after = _rows(run)
    assert list(after) == list(before)
    limited = {key for key, row in after.items() if row["questions"] == 5}
    # The folder has no checkpoint of the control's.
    assert {key[:3] for key in limited} == {
        (model, setting, "piqa_local")
        for model in ("original", "control", "tuned")
        for setting in ("float", "rtn-3", "rtn-2")
        if (model, setting[:3]) != ("control", "rtn")
    }
    assert {key: after[key] for key in set(after) - limited} == {
        key: before[key] for key in set(after) - limited
    }


@pytest.mark.parametrize(
    ("arguments", "model", "setting"),
    [
        ("path={run},quant=rtn-2", "tuned", "rtn-2"),
        ("path={run},quant=rtn-3,model=original", "original", "rtn-3"),
        ("path={run}/quantized/rtn-3", "tuned", "rtn-3"),
        ("path={run},model=control", "control", "float"),
        ("path={run},model=original", "original", "float"),
        ("path={run}", "tuned", "float"),
    ],
)
def test_the_model_type_opens_each_model_of_a_run(
    arguments, model, setting, finished, environment, monkeypatch
) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    import npft.lm_eval_plugin.model  # noqa: F401

    monkeypatch.setenv("NPFT_DATA", environment["NPFT_DATA"])
    results = simple_evaluate(
        model="npft",
        model_args=arguments.format(run=finished) + ",device=cpu",
        tasks=["piqa_local", "arc_easy_local"],
        task_manager=TaskManager(include_path=str(TASKS), include_defaults=False),
        batch_size=8,
    )
    rows = {k[2:]: row for k, row in _rows(finished).items() if k[:2] == (model, setting)}
    assert len(rows) == 4
    for (task, metric), row in rows.items():
        assert results["results"][task][f"{metric},none"] == row["value"]


def test_the_harnesss_command_knows_the_model_type(finished, environment, tmp_path) -> None:
    command = shutil.which("lm_eval", path=str(Path(sys.executable).parent))
    assert command is not None
    ran = _call(
        environment, command, "--model", "npft", "--model_args", f"path={finished},quant=rtn-2",
        "--tasks", "piqa_local", "--include_path", str(TASKS), "--batch_size", "8",
        "--output_path", str(tmp_path),
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    report = json.loads(next(tmp_path.rglob("*.json")).read_text())
    for metric in ("acc", "acc_norm"):
        row = _rows(finished)["tuned", "rtn-2", "piqa_local", metric]
        assert report["results"]["piqa_local"][f"{metric},none"] == row["value"]
        assert report["results"]["piqa_local"][f"{metric}_stderr,none"] == row["stderr"]


def test_other_pythons_do_not_load_the_harness(environment) -> None:
    code = "import sys; print({name for name in sys.modules if 'lm_eval' in name})"
    assert _call(environment, sys.executable, "-c", code).stdout == "set()\n"


def test_the_entry_point_leads_to_the_model_type() -> None:
    pytest.importorskip("lm_eval")
    from lm_eval.api.registry import get_model

    (point,) = metadata.entry_points(group="lm_eval.models", name="npft")
    assert point.load() is get_model("npft")


def test_what_a_run_does_not_have_is_told(finished, tmp_path) -> None:
    from npft.lm_eval_plugin.model import RunModel

    refusal(
        lambda: RunModel(str(finished), quant="rtn-4"), "'rtn-4' of the tuned model", "rtn-2, rtn-3"
    )
    refusal(
        lambda: RunModel(str(finished), quant="rtn-2", model="control"),
        "it has none", "npft quantize", "--of control",
    )  # fmt: skip
    refusal(lambda: RunModel(str(finished), model="best"), "original, control, tuned")
    refusal(lambda: RunModel(str(tmp_path)), "is no run folder")
    (tmp_path / "config.toml").write_text(f'model = "m"\noutput = "{tmp_path}"\n')
    refusal(lambda: RunModel(str(tmp_path)), "has no merged/ yet", "npft tune")
