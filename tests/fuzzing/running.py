"""Starts workers, and takes note where one dies of an input."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from fuzzing.outcome import INPUT, Failure, Outcome

SECONDS = 30.0
"""That an input may take before it counts as hanging; generous, as machines are busy."""

MEGABYTES = 1024
"""That the process may grow by."""


def run(folder: Path, wanted: Mapping[str, int]) -> Iterator[Outcome]:
    """Try so many inputs on each target, in one process as long as it lives."""
    left = dict(wanted)
    while left:
        limits = [str(SECONDS), str(MEGABYTES)]
        command = [sys.executable, "-W", "ignore", "-m", "fuzzing.worker", str(folder), *limits]
        with (folder / "stderr").open("w+") as told:
            with subprocess.Popen(
                [*command, *(f"{name}:{count}" for name, count in left.items())],
                stdout=subprocess.PIPE,
                stderr=told,
                text=True,
                env={**os.environ, **_ENVIRONMENT},
            ) as process:
                assert process.stdout is not None
                for line in process.stdout:
                    outcome = Outcome.of(json.loads(line))
                    del left[outcome.target]
                    yield outcome
            if process.returncode:
                told.seek(0)
                yield _dead(folder, left, process.returncode, told.read())


def _dead(folder: Path, left: dict[str, int], status: int, told: str) -> Outcome:
    name = next(iter(left))
    place = folder / f"{name}-died.pickle"
    if (folder / INPUT).exists():
        shutil.copy(folder / INPUT, place)
    said = "\n".join(told.strip().splitlines()[-30:])
    failure = Failure(said, str(place), count=1)
    return Outcome(name, left.pop(name), failures={f"the process ended with {status}": failure})


_ENVIRONMENT = {
    "PYTHONPATH": str(Path(__file__).parent.parent),
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
