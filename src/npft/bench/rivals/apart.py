"""Measuring a rival in a process of its own, whatever its library prints, patches or breaks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from npft.bench.measure import Line
from npft.bench.rivals.rival import Rival
from npft.errors import abridged, printable

LIMIT = 1800
"""Seconds for one rival: kernels that are compiled at first use take minutes."""

NOT_INSTALLED = "not installed"


def measured(rival: Rival, shape: str, bandwidth: float, replays: int) -> Line | str:
    """All linear layers of one token in one rival's format, or why they cannot be measured."""
    if not rival.installed:
        return NOT_INSTALLED
    with tempfile.TemporaryDirectory(prefix="npft-bench-") as folder:
        answer = Path(folder, "answer.json")
        job = {"name": rival.name, "shape": shape, "bandwidth": bandwidth, "replays": replays}
        try:
            ended = subprocess.run(
                [sys.executable, "-m", "npft.bench.rivals.worker"],
                cwd=folder,  # some write logs to where they run
                env={**os.environ, "PYTHONPATH": _path()},
                input=json.dumps({**job, "answer": str(answer)}),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                encoding="utf-8",
                errors="replace",
                timeout=LIMIT,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return _unusable(f"not done after {LIMIT} seconds")
        if not answer.exists():
            return _unusable(_last_words(ended))
        told = json.loads(answer.read_text(encoding="utf-8"))
    return Line(**told["line"]) if "line" in told else _unusable(told["error"])


def _unusable(why: str) -> str:
    return f"installed, but its kernel cannot be used here: {printable(why)}"


def _last_words(ended: subprocess.CompletedProcess[str]) -> str:
    """Of a process that ended without an answer."""
    lines = [" ".join(line.split()) for line in ended.stderr.splitlines() if line.strip()]
    how = f"its process ended with status {ended.returncode}"
    return f"{how}: {abridged(lines[-1], 200)}" if lines else how


def _path() -> str:
    """Where this process looks for modules, which may differ from where a new one would."""
    return os.pathsep.join(os.path.abspath(entry) for entry in sys.path)
