"""Damaged inputs for every kind of file that npft reads: none may end in a traceback, hang or
fill the memory.

    python benchmarks/fuzz.py [--inputs 10000] [--workers 2] [--keep DIR] [TARGET…]

Prints a line per kind of file: inputs tried, refused in a sentence, and taken; the seconds of the
slowest; by how much the process grew; and what went wrong, with the file of the smallest such
input. Exits with 1 if anything did. Each process may grow by 1 GB, and an input take 30 seconds.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from fuzzing.outcome import Outcome
from fuzzing.running import run
from fuzzing.targets import TARGETS

HEADINGS = ("target", "inputs", "refused", "taken", "slowest, s", "growth, MB", "failures")


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser()
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="folder for inputs that are taken wrongly")
    options = parser.parse_args()
    unknown = set(options.targets) - TARGETS.keys()
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(TARGETS)}")
    keep = options.keep or Path(tempfile.mkdtemp(prefix="npft-fuzz-"))
    print("| " + " | ".join(HEADINGS) + " |\n" + "| --- " * len(HEADINGS) + "|", flush=True)
    failed = False
    for found in outcomes(options.targets or list(TARGETS), options.inputs, options.workers, keep):
        failed |= bool(found.failures)
        print(line(found), flush=True)
        for kind, failure in found.failures.items():
            print(f"  {failure.count} × {kind}: {ascii(failure.said)[:200]} ({failure.place})")
    return int(failed)


def outcomes(names: list[str], inputs: int, workers: int, keep: Path) -> Iterator[Outcome]:
    """Every target in a process of its own, some at a time."""

    def one(name: str) -> Outcome:
        folder = keep / name
        folder.mkdir(parents=True, exist_ok=True)
        (found,) = run(folder, {name: inputs})
        return found

    with ThreadPoolExecutor(workers) as pool:
        for done in as_completed(pool.submit(one, name) for name in names):
            yield done.result()


def line(found: Outcome) -> str:
    """One line of the table."""
    cells = (
        found.target,
        f"{found.inputs:,}",
        f"{found.refused:,}",
        f"{found.accepted:,}",
        f"{found.slowest:.1f}",
        f"{found.memory:.0f}",
        str(sum(failure.count for failure in found.failures.values())),
    )
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    sys.exit(main())
