"""The objective tskd against npft's own: ``python language.py OUT [FLAGS OF npft run]``.

Tunes once by each objective and seed, with one and the same budget (that of ``npft run`` alone
unless flags say otherwise), and prints how far the models are from the original.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

ONE_MEMORY = ("--objective", "tskd", "-o", "objective.memories=1")
OBJECTIVES = {
    "kl": ("--objective", "kl"),
    "tskd": ONE_MEMORY,
    "tskd, weight=30": (*ONE_MEMORY, "-o", "objective.weight=30"),
    "tskd, static target (fits=0)": (*ONE_MEMORY, "-o", "objective.fits=0"),
    "tskd, temperature=4, cross_entropy=1": (
        *ONE_MEMORY, "-o", "objective.temperature=4", "-o", "objective.cross_entropy=1",
    ),
}  # fmt: skip

Divergences = dict[tuple[str, str], float]
"""By (evaluation text, quantizer)."""


def divergences(flags: tuple[str, ...], seed: int, output: Path) -> Divergences:
    """One run: KL of the tuned model to the original, in nats per token."""
    command = [sys.executable, "-m", "npft", "run", "--no-control", "--json", *flags]
    command += ["--seed", str(seed), "--output", str(output)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return {
        (row["dataset"], "float" if row["quantizer"] == "none" else _setting(row)): row["value"]
        for row in json.loads(done.stdout)["rows"]
        if row["model"] == "tuned" and row["metric"] == "kl"
    }


def _setting(row: dict[str, str]) -> str:
    return f"{row['quantizer']}-{row['bits']}"


def main() -> None:
    """Run all, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("--only", nargs="+", choices=OBJECTIVES, default=list(OBJECTIVES))
    parser.add_argument("--seeds", type=int, default=3)
    options, flags = parser.parse_known_args()
    found = {
        name: [
            divergences((*OBJECTIVES[name], *flags), seed, options.output / f"{number}-{seed}")
            for seed in range(options.seeds)
        ]
        for number, name in enumerate(OBJECTIVES)
        if name in options.only
    }
    cells = list(next(iter(found.values()))[0])
    print("| objective |", " | ".join(f"{text}, {setting}" for text, setting in cells), "|")
    print("| --- |", " | ".join("---" for _ in cells), "|")
    for name, runs in found.items():
        row = [_shown([run[cell] for run in runs]) for cell in cells]
        print(f"| {name} |", " | ".join(row), "|")


def _shown(values: list[float]) -> str:
    mean = f"{statistics.mean(values):.4f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.4f}"


if __name__ == "__main__":
    main()
