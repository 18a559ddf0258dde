"""Runs of the command that are killed, stopped or started twice; the long form is a benchmark."""

from __future__ import annotations

import importlib.util
import random
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from tiny import save_tiny

FILE = Path(__file__).parents[1] / "benchmarks" / "reliability_checks" / "kills.py"

SHORT = [
    *("--samples", "4", "--context", "32", "--eval-samples", "2", "--epochs", "3", "--rank", "2"),
    *("--quant", "rtn", "--quant", "kmeans", "--bits", "3"),
    *("--device", "cpu", "-o", "tuning.batch_size=2", "-o", "tuning.dropout=0.1"),
]


@pytest.fixture(scope="module")
def kills() -> ModuleType:
    spec = importlib.util.spec_from_file_location("kills", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.OPTIONS = SHORT
    return module


def test_kills_at_random_moments_change_nothing(kills, tmp_path) -> None:
    """The seed is in the message: ``reliability.py kills --seed`` takes it."""
    seed = random.SystemRandom().randrange(10**6)
    landed, _, lost = kills.survive(tmp_path, 3, seed)
    assert landed == 3
    assert not lost, f"seed {seed}: {lost}"


def test_a_difference_would_be_seen(kills, tmp_path) -> None:
    for name in ("a", "b"):
        (tmp_path / name / "adapter").mkdir(parents=True)
        (tmp_path / name / "adapter" / "weights").write_bytes(b"same")
        (tmp_path / name / "config.toml").write_text(name)
    assert kills.compare(tmp_path / "a", tmp_path / "b") == []
    (tmp_path / "b" / "adapter" / "weights").write_bytes(b"Same")
    (tmp_path / "b" / "more").write_bytes(b"")
    assert kills.compare(tmp_path / "a", tmp_path / "b") == ["only one has more", "adapter/weights"]


def test_ctrl_c_says_how_to_go_on_and_a_second_run_is_refused_meanwhile(kills, tmp_path) -> None:
    model, run = save_tiny(tmp_path / "model"), tmp_path / "run"
    process = kills.start(model, run)
    while not (run / "scores").is_dir():
        assert process.poll() is None, process.communicate()
    process.send_signal(signal.SIGSTOP)  # the second may take its time
    command = [sys.executable, "-m", "npft", "run", "--model", str(model), "--output", str(run)]
    second = subprocess.run(
        [*command, *SHORT], capture_output=True, text=True, check=False, timeout=300
    )
    assert second.returncode == 1
    assert "in use by another run" in second.stderr
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGCONT)
    errors = process.communicate()[1]
    assert process.returncode == 130
    assert errors.strip().splitlines()[-1] == (
        f"npft: stopped, and what is done is in {run}: the same command with --output {run} "
        "goes on from there"
    )
    assert "Traceback" not in errors
    kills.finish(model, run)


def test_ctrl_c_before_anything_is_kept(kills, tmp_path) -> None:
    model, run = save_tiny(tmp_path / "model"), tmp_path / "run"
    process = kills.start(model, run)
    process.send_signal(signal.SIGINT)
    errors = process.communicate()[1]
    assert process.returncode == 130
    assert "npft: stopped" in errors
    assert "Traceback" not in errors
