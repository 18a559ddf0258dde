"""Many short runs in one process: memory, files and threads do not grow.

Each run is a whole one of a tiny model into a folder of its own, which is removed. What the first
runs fill (imports, caches of other libraries) is not counted. Growth is the slope of a straight
line through resident memory after each later run, times their number.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import shutil
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tiny import save_tiny

from npft import config, data, pipeline
from npft.plugins import discover

SETTINGS = {
    "samples": 2,
    "context": 16,
    "eval_samples": 1,
    "tuning": {"epochs": 2, "batch_size": 1, "rank": 2},
    "quant": [{"name": "rtn"}, {"name": "kmeans"}],
    "bits": [3],
    "device": "cpu",
}

CHARACTERS = 20_000

WARM_UP = 5


@dataclass(frozen=True)
class Use:
    """What the process holds."""

    megabytes: float
    files: int
    threads: int


def main(arguments: list[str]) -> int:
    """Run, and tell what grew; 1 if anything did."""
    parser = argparse.ArgumentParser(prog="reliability.py soak", description=__doc__)
    parser.add_argument("--runs", type=int, default=200)
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as place:
        used = soak(Path(place), chosen.runs)
    growth, grown = judge(used)
    first, last = used[0], used[-1]
    print(
        f"{chosen.runs} runs: resident memory {first.megabytes:.0f} MB after {WARM_UP}, "
        f"{last.megabytes:.0f} MB at the end, {growth:+.1f} MB by the slope; open files "
        f"{first.files} and {last.files}, threads {first.threads} and {last.threads}"
    )
    for sentence in grown:
        print(sentence)
    return 1 if grown else 0


def soak(place: Path, runs: int) -> list[Use]:
    """What is held after each run beyond the first few."""
    model, used = save_tiny(place / "model"), []
    text = place / "text.txt"
    text.write_text("\n".join(data.load_text("builtin"))[:CHARACTERS])
    texts = {"calibration": str(text), "evaluate": {"text": str(text)}}
    for number in range(1, runs + 1):
        output = place / "run"
        values = {**SETTINGS, **texts, "model": str(model), "output": str(output), "seed": number}
        pipeline.run(config.make(values), discover())
        shutil.rmtree(output)
        if number >= WARM_UP:
            used.append(use())
        if number % 10 == 0:
            print(f"{number} runs: {use()}", file=sys.stderr, flush=True)
    return used


def use() -> Use:
    """What this process holds, after giving back what is free."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    megabytes = pages * os.sysconf("SC_PAGE_SIZE") / 1e6
    return Use(megabytes, len(os.listdir("/proc/self/fd")), threading.active_count())


def judge(used: list[Use], most: float = 0.05) -> tuple[float, list[str]]:
    """The growth of memory in megabytes, and a sentence for everything that grew.

    Memory may grow by a share ``most`` of itself over all runs, which is noise.
    """
    memory = np.array([one.megabytes for one in used])
    slope = np.polyfit(np.arange(len(memory)), memory, 1)[0]
    growth = float(slope) * (len(memory) - 1)
    grown = []
    if growth > most * memory[0]:
        grown.append(f"memory grew by {growth:.1f} MB")
    for what in ("files", "threads"):
        counts = [getattr(one, what) for one in used]
        if max(counts[len(counts) // 2 :]) > max(counts[: len(counts) // 2]):
            grown.append(f"{what} grew from {counts[0]} to {counts[-1]}")
    return growth, grown
