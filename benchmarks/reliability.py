"""What the README says of reliability, measured: kills survived, runs repeated and soaked.

    python benchmarks/reliability.py kills|repeat|soak [--help]

Each is a module of that name in ``reliability_checks`` with a ``main(arguments)``; what it finds
is printed, and the exit status is 1 where something was lost.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
CHECKS = HERE / "reliability_checks"


def main() -> None:
    """Hand over to the check that is named first."""
    names = sorted(file.stem for file in CHECKS.glob("[!_]*.py"))
    if len(sys.argv) < 2 or sys.argv[1] not in names:
        print(f"usage: reliability.py {'|'.join(names)} [options]", file=sys.stderr)
        sys.exit(2)
    sys.path[:0] = [str(HERE), str(HERE.parent / "tests")]
    check = importlib.import_module(f"reliability_checks.{sys.argv[1]}")
    sys.exit(check.main(sys.argv[2:]))


if __name__ == "__main__":
    main()
