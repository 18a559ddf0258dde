"""Does the demonstration keep its promise: 6 minutes, 4 GB, better than no tuning and the control?

    python benchmarks/demo.py

Runs ``npft run`` as the README does, in a temporary folder, and prints seconds, peak memory and
the KL of each quantized cell. Exits with 1 if a promise is broken. Meant for a machine with 2 idle
cores.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SECONDS, GIGABYTES = 360.0, 4.0


def main() -> int:
    """Run and judge."""
    with tempfile.TemporaryDirectory() as place:
        output = Path(place) / "run"
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "npft", "run", "--output", str(output)], check=True)
        seconds = time.perf_counter() - start
        rows = json.loads((output / "results.json").read_text())["rows"]
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e9
    cells: dict[str, dict[str, float]] = {}
    for row in rows:
        if row["metric"] == "kl" and row["quantizer"] != "none":
            name = f"{row['quantizer']}-{row['bits']}"
            cells.setdefault(name, {})[row["model"]] = row["value"]
    print(f"{seconds:.0f} s of {SECONDS:.0f}, {peak:.2f} GB of {GIGABYTES:.0f}")
    won = [kl["tuned"] < min(kl["original"], kl["control"]) for kl in cells.values()]
    for name, kl in cells.items():
        print(name, {model: round(value, 4) for model, value in kl.items()})
    return 0 if all(won) and seconds <= SECONDS and peak <= GIGABYTES else 1


if __name__ == "__main__":
    sys.exit(main())
