"""Several processes over Gloo, by the real launchers, against one: the same run up to rounding."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from refusals import refusal
from safetensors.torch import load_file
from tiny import save_tiny

from npft import config, pipeline, steps
from npft.cli.options import configure_folder
from npft.plugins import discover
from npft.processes import ALONE, launched
from npft.progress import Silent

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
ACCELERATE = [
    *(sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu"),
    *("--main_process_port", "0", "--num_processes"),
]

# Seven windows are 4 and 3, or 3, 2 and 2; the last batch of an epoch has one alone.
SETTINGS: dict[str, Any] = {
    "samples": 7,
    "context": 32,
    "eval_samples": 2,
    "gamma": 0.05,
    "tuning": {"epochs": 2, "batch_size": 3, "rank": 4, "rescore": True, "dropout": 0.0},
    "quant": [{"name": "rtn"}],
    "bits": [3],
    "device": "cpu",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("processes") / "model")


@pytest.fixture(scope="module")
def alone(model, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("alone") / "run"
    values = {**SETTINGS, "model": str(model), "output": str(output)}
    pipeline.run(config.make(values), discover())
    return output


def command(model: Path, output: Path, **changes: Any) -> list[str]:
    """``npft run`` of the settings, which are beside the run folder as a file."""
    file = output.with_suffix(".toml")
    file.write_text(config.dumps(config.make({**SETTINGS, "model": "-", "output": "-"}), {}))
    flags = [f"--{name}={value}" for name, value in changes.items()]
    return ["run", f"--config={file}", f"--model={model}", f"--output={output}", *flags]


def launch(launcher: list[str], count: int, words: list[str]) -> subprocess.CompletedProcess[str]:
    """Run ``npft`` in ``count`` processes."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [*launcher, str(count), "-m", "npft", *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env=environment,
    )


def rows(run: Path) -> list[dict[str, Any]]:
    return json.loads((run / "results.json").read_text())["rows"]


def files(run: Path) -> set[str]:
    return {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}


def assert_same(one: Path, several: Path) -> None:
    """The same outliers; adapters, losses and results but for rounding; the same files."""
    chosen, again = (load_file(run / "scores" / "outliers.safetensors") for run in (one, several))
    assert chosen.keys() == again.keys()
    assert all(torch.equal(chosen[name], again[name]) for name in chosen)
    for folder in ("adapter", "control"):
        mine, theirs = (
            load_file(run / folder / "adapter_model.safetensors") for run in (one, several)
        )
        assert max(float(values.abs().max()) for values in mine.values()) > 0.01
        torch.testing.assert_close(theirs, mine, rtol=1e-3, atol=1e-5)
    for file in ("losses.json", "losses-control.json"):
        mine, theirs = (json.loads((run / file).read_text()) for run in (one, several))
        assert len(mine) == len(theirs) == 6
        for step, other in zip(mine, theirs, strict=True):
            assert other["step"] == step["step"]
            for term in ("noisy", "clean"):  # None where the step did not take it, in both
                expected = step[term] and pytest.approx(step[term], rel=1e-3, abs=1e-6)
                assert other[term] == expected
    for row, other in zip(rows(one), rows(several), strict=True):
        assert other == {**row, "value": pytest.approx(row["value"], rel=1e-3, abs=1e-6)}
    assert files(one) == files(several)


def test_two_processes_make_the_run_of_one(model, alone, tmp_path) -> None:
    run = tmp_path / "run"
    done = launch(TORCHRUN, 2, [*command(model, run), "--json"])
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rows"] == rows(run)  # one report, though two processes
    assert done.stderr.count("2 processes share the scoring and the tuning") == 1
    assert done.stderr.count("tune: 6 in") == 1
    assert_same(alone, run)
    assert json.loads((run / "results.json").read_text())["environment"]["processes"] == 2


def test_three_streamed_processes_go_on_with_the_run_of_one(model, alone, tmp_path) -> None:
    """They score again for each epoch; a batch of one window leaves two of them without."""
    run = tmp_path / "run"
    shutil.copytree(alone, run)
    shutil.rmtree(run / "adapter")
    done = launch(ACCELERATE, 3, command(model, run, memory="streamed"))
    assert done.returncode == 0, done.stderr
    assert "memory: streamed" in done.stderr
    assert done.stderr.count("has already: scores, control") == 1
    assert done.stderr.count("tune: 6 in") == 1
    assert_same(alone, run)


def test_two_sharded_processes_make_the_run_of_one(model, alone, tmp_path) -> None:
    """And one process alone opens what they made."""
    run = tmp_path / "run"
    done = launch(TORCHRUN, 2, command(model, run, memory="sharded"))
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("memory: sharded") == 1
    assert "2 processes share the scoring and the tuning" in done.stderr
    assert_same(alone, run)
    before, settings = rows(run), configure_folder(str(run), {})
    assert settings.memory == "sharded"
    steps.evaluate(settings, discover(), Silent())
    assert rows(run) == before


def test_sharded_needs_a_launcher(model, tmp_path) -> None:
    values = {**SETTINGS, "model": str(model), "output": str(tmp_path / "run")}
    settings = config.make({**values, "memory": "sharded"})
    told = refusal(lambda: pipeline.run(settings, discover()))
    assert "accelerate launch --multi_gpu --num_processes N" in told
    assert not (tmp_path / "run").exists()


def test_a_sharded_process_that_is_killed_ends_the_other_with_a_sentence(model, tmp_path) -> None:
    """Without a launcher, which would end the other one first."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    run = tmp_path / "run"
    words = [*command(model, run, memory="sharded"), "-o", "tuning.epochs=1000"]

    def start(rank: int) -> subprocess.Popen[str]:
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
        place |= {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
        return subprocess.Popen(
            [sys.executable, "-m", "npft", *words],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            env={**os.environ, **{name: str(value) for name, value in place.items()}},
        )  # fmt: skip

    main, other = start(0), start(1)
    try:
        until = time.monotonic() + 60
        while not list(run.glob(".work/*/state.safetensors")) and time.monotonic() < until:
            assert main.poll() is None, main.communicate()
            time.sleep(0.1)
        other.kill()
        said = main.communicate(timeout=60)[1]
    finally:
        main.kill()
        other.kill()
        other.communicate()
    assert main.returncode == 1
    assert said.count("npft: error:") == 1, said
    assert "npft: error: another process of this run has ended before its work was done" in said


def test_what_all_find_wrong_is_told_once(tmp_path) -> None:
    done = launch(TORCHRUN, 2, command(tmp_path / "none", tmp_path / "run"))
    assert done.returncode == 1
    assert done.stderr.count("npft: error:") == 1, done.stderr
    assert not (tmp_path / "run").exists()


def test_what_one_finds_wrong_ends_all(model, tmp_path) -> None:
    """Each process looks for the model in a folder of its own, and the second has none there."""
    for rank in ("0", "1"):
        (tmp_path / rank).mkdir()
    words = command(Path("model"), tmp_path / "run")
    (tmp_path / "0" / "model").symlink_to(model)
    line = f'cd "{tmp_path}/$LOCAL_RANK"; exec "$0" -m npft "$@"'
    done = subprocess.run(
        [*TORCHRUN, "2", "--no-python", "bash", "-c", line, sys.executable, *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 1
    assert done.stderr.count("npft: error: model 'model'") == 1, done.stderr
    assert done.stderr.count("npft: error:") == 1
    assert not (tmp_path / "run" / "scores").exists()


def test_a_process_alone_shares_nothing() -> None:
    assert not launched()
    batch = torch.arange(6).view(3, 2)
    loss = torch.tensor(2.0, requires_grad=True)
    assert ALONE.part(batch, divide=True) == (batch, 1.0)
    assert ALONE.share(batch) is batch
    assert ALONE.mean(loss, 1.0) is loss
    assert ALONE.main
    assert ALONE.device("auto") == "auto"
