"""Run the same thing twice, in two processes: are all bits the same, and what does that cost?

Once with torch's own choice of algorithms and once with ``--deterministic``. Meant for a GPU; on a
CPU the bits are the same either way.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tiny import save_tiny

from reliability_checks.kills import compare

SETTINGS = [
    *("--samples", "32", "--context", "128", "--eval-samples", "8", "--epochs", "4"),
    *("--quant", "rtn", "--quant", "kmeans", "--bits", "3"),
]


def main(arguments: list[str]) -> int:
    """Run four times; 1 if ``--deterministic`` did not give the same bits."""
    parser = argparse.ArgumentParser(prog="reliability.py repeat", description=__doc__)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--model", help="instead of a tiny random one")
    chosen = parser.parse_args(arguments)
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        model = chosen.model or str(save_tiny(place / "model", hidden_size=256))
        for name, flags in (("as torch likes", []), ("deterministic", ["--deterministic"])):
            runs = [place / f"{name}-{number}" for number in (1, 2)]
            seconds = [timed(model, run, ["--device", chosen.device, *flags]) for run in runs]
            different = compare(*runs)
            failed = failed or bool(flags and different)
            said = f"{len(different)} files differ: {different}" if different else "every bit equal"
            print(f"{name}: {min(seconds):.1f} s, {said}", flush=True)
    return 1 if failed else 0


def timed(model: str, run: Path, flags: list[str]) -> float:
    """Run; seconds of the whole command."""
    command = [sys.executable, "-m", "npft", "run", "--model", model, "--output", str(run)]
    start = time.perf_counter()
    subprocess.run(
        [*command, *SETTINGS, *flags, "--quiet", "--json"],
        check=True,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    return time.perf_counter() - start
