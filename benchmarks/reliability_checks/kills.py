"""Kill a real run at random moments, and compare its end with an undisturbed one, bit for bit.

A run of a tiny model in a process of its own is killed with SIGKILL at a random moment after it
has locked its folder; the same command goes on, and may be killed again. When it gets to its end,
every file that it leaves is compared with that of a run that nobody disturbed, and the next one
starts, until as many kills as asked for have hit. A kill after the last stage does not count.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tiny import save_tiny

from npft.folder import LOCK, STAGES

OPTIONS = [
    *("--samples", "8", "--context", "32", "--eval-samples", "3", "--epochs", "4", "--rank", "4"),
    *("--quant", "rtn", "--quant", "kmeans", "--quant", "nonuniform", "--bits", "4", "--bits", "3"),
    *("--device", "cpu", "-o", "tuning.batch_size=2", "-o", "tuning.dropout=0.1"),
]
"""Every kind of stage, and a few seconds of work."""

DIFFERENT = {LOCK, "config.toml", "report.html"}
"""Files that tell of time, memory or place, so that no two runs have the same."""

RESULTS = ("rows", "losses", "notes", "unavailable", "sensitivity")
"""What of results.json must be the same."""


def main(arguments: list[str]) -> int:
    """Kill, go on and compare; 1 if anything differs."""
    parser = argparse.ArgumentParser(prog="reliability.py kills", description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=None, help="of the moments")
    chosen = parser.parse_args(arguments)
    seed = chosen.seed if chosen.seed is not None else random.SystemRandom().randrange(10**6)
    with tempfile.TemporaryDirectory() as place:
        landed, runs, lost = survive(Path(place), chosen.kills, seed)
    for sentence in lost:
        print(sentence)
    print(
        f"{landed} kills in {runs} runs (seed {seed}): "
        + (f"{len(lost)} differences" if lost else "every end is that of an undisturbed run")
    )
    return 1 if lost else 0


def survive(place: Path, kills: int, seed: int) -> tuple[int, int, list[str]]:
    """Kills that hit, runs that they hit, and what differs at the end of any."""
    moments = random.Random(seed)
    model = save_tiny(place / "model")
    whole = place / "undisturbed"
    seconds = finish(model, whole)
    print(f"undisturbed: {seconds:.1f} s of work", file=sys.stderr, flush=True)
    landed, runs, lost = 0, 0, []
    while landed < kills:
        runs += 1
        run = place / f"run-{runs}"
        while landed < kills:
            fresh, moment = not run.exists(), moments.uniform(0, seconds)
            took = killed(model, run, moment)
            if took is not None:  # other work on the machine has become less, it seems
                seconds = min(seconds, took) if fresh else seconds
                break
            if stages(run) == stages(whole):  # too late to be counted: only the report was left
                finish(model, run)
                break
            landed += 1
            print(f"kill {landed}: {moment:.2f} s, {state(run)}", file=sys.stderr, flush=True)
        else:
            finish(model, run)
        lost += [f"run {runs}: {difference}" for difference in compare(whole, run)]
    return landed, runs, lost


def start(model: Path, run: Path) -> subprocess.Popen[str]:
    """The command, in a process of its own, when it has locked its folder."""
    command = [sys.executable, "-m", "npft", "run", "--model", str(model), "--output", str(run)]
    process = subprocess.Popen(
        [*command, *OPTIONS, "--quiet", "--json"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )
    since = time.time()
    while process.poll() is None and not in_use(run, since):
        time.sleep(0.01)
    return process


def in_use(run: Path, since: float) -> bool:
    """Whether a run that started at ``since`` has its folder; opening the lock touches it."""
    lock = run / LOCK
    return lock.is_file() and lock.stat().st_mtime >= since - 0.01


def finish(model: Path, run: Path) -> float:
    """Let the command come to its end; seconds from the lock on."""
    process = start(model, run)
    began = time.perf_counter()
    check(process)
    return time.perf_counter() - began


def killed(model: Path, run: Path, moment: float) -> float | None:
    """Kill the command ``moment`` seconds after it began; how long it took, if it was quicker."""
    process = start(model, run)
    began = time.perf_counter()
    try:
        process.wait(moment)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return None
    took = time.perf_counter() - began
    check(process)
    return took


def check(process: subprocess.Popen[str]) -> None:
    """Wait for the end, which must be a good one."""
    errors = process.communicate()[1]
    if process.returncode != 0:
        raise SystemExit(f"npft run ended with status {process.returncode}: {errors}")


def stages(run: Path) -> int:
    """How many stages a run has done."""
    return len(list((run / STAGES).rglob("*.json")))


def state(run: Path) -> str:
    """How far a killed run had come."""
    pieces = [file.name for file in (run / ".work").rglob("*.safetensors") if "@" in str(file)]
    broken = [file.name for file in run.rglob(".*.part")]
    half = ", ".join(broken) or "nothing"
    return f"{stages(run)} stages done, {len(pieces)} pieces of the next, half-written: {half}"


def compare(whole: Path, run: Path) -> list[str]:
    """What differs between the folders of two runs that should have the same."""
    one, other = files(whole), files(run)
    lost = [f"only one has {name}" for name in sorted(one ^ other)]
    for name in sorted(one & other):
        if name == "results.json":
            first, second = (json.loads((place / name).read_text()) for place in (whole, run))
            lost += [f"{name}: {key}" for key in RESULTS if first[key] != second[key]]
        elif content(whole / name) != content(run / name):
            lost.append(name)
    return lost


def content(file: Path) -> object:
    """Every bit of a file; of safetensors without the order of its metadata, which is random."""
    raw = file.read_bytes()
    if file.suffix != ".safetensors":
        return raw
    size = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + size]), raw[8 + size :]


def files(run: Path) -> set[str]:
    """What is to be compared."""
    names = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    return {name for name in names if name not in DIFFERENT and not name.startswith(STAGES)}
