"""Does tuning help? Original, control and tuned through every quantizer, on C4 and WikiText-2.

    python benchmarks/quality.py --model MODEL --data FOLDER [--output RUN] [npft run flags]

FOLDER holds ``c4-calibration.jsonl``, ``c4-validation.jsonl`` and ``wikitext2-validation.txt``.
The recipe is the default one with 128 x 512 calibration tokens and 64 windows of each evaluation
text; any flag of ``npft run`` may follow. Prints the table; every number is in RUN/results.json.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path


def command(model: str, data: Path, output: str, more: list[str]) -> list[str]:
    """The ``npft run`` that this benchmark is."""
    return [
        *(sys.executable, "-m", "npft", "run"),
        *("--model", model),
        *("--calibration", str(data / "c4-calibration.jsonl")),
        *("--evaluate", f"c4={data / 'c4-validation.jsonl'}"),
        *("--evaluate", f"wikitext2={data / 'wikitext2-validation.txt'}"),
        *("--samples", "128", "--context", "512", "--eval-samples", "64"),
        *("--quant", "rtn", "--quant", "kmeans", "--bits", "4", "--bits", "3"),
        *("--output", output),
        *more,
    ]


def main() -> None:
    """Parse the arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", default="runs/quality")
    known, more = parser.parse_known_args()
    sys.exit(subprocess.run(command(known.model, known.data, known.output, more)).returncode)


if __name__ == "__main__":
    main()
