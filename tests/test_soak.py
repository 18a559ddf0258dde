"""A few short runs in one process; 200 of them are a benchmark."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def soak() -> ModuleType:
    file = BENCHMARKS / "reliability_checks" / "soak.py"
    spec = importlib.util.spec_from_file_location("soak", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["soak"] = module
    spec.loader.exec_module(module)
    return module


pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")


def test_a_few_runs_leave_nothing_behind() -> None:
    """In a process of its own, whose memory nothing else moves."""
    command = [sys.executable, str(BENCHMARKS / "reliability.py"), "soak", "--runs", "8"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=500)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "8 runs: resident memory" in ran.stdout


def test_growth_is_seen(soak) -> None:
    still = [soak.Use(500 + (i % 3), 10, 2) for i in range(20)]
    assert soak.judge(still)[1] == []
    leaking = [soak.Use(500 + 5 * i, 10 + i, 2 + i // 10) for i in range(20)]
    sentences = soak.judge(leaking)[1]
    assert sentences == [
        "memory grew by 95.0 MB", "files grew from 10 to 29", "threads grew from 2 to 3"
    ]  # fmt: skip


def test_what_the_process_holds(soak) -> None:
    before = soak.use()
    assert before.megabytes > 50
    handles = [os.open(os.devnull, os.O_RDONLY) for _ in range(7)]
    assert soak.use().files == before.files + 7
    for handle in handles:
        os.close(handle)
