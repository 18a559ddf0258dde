"""``python -m npft_autogptq.make_environment [--path FOLDER] [--python PYTHON]``."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from npft.errors import NpftError, Unavailable, in_one_line
from npft_autogptq.environment import (
    MAKER,
    PACKAGE,
    REQUIREMENTS,
    WORKER,
    clean_variables,
    interpreter,
    location,
    require,
)


def make(folder: Path, python: str = sys.executable) -> None:
    """Make the environment with ``python``, whole or not at all; pip's own settings hold.

    Raises:
        NpftError: the folder holds something already, or a step failed.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise NpftError(f"{str(folder)!r} is not empty: remove it, or give another --path")
    inside = str(interpreter(folder))
    pip = [inside, "-m", "pip", "install", "--disable-pip-version-check"]
    # Built from source without CUDA kernels, which only quantized inference would use: the same
    # package on every platform, and without what its metadata asks for but quantizing never needs.
    from_source = ["--no-deps", "--no-build-isolation", "--no-binary=auto-gptq"]
    steps = [
        [python, "-m", "venv", str(folder)],
        [*pip, "--requirement", str(REQUIREMENTS)],
        [*pip, *from_source, f"auto-gptq=={PACKAGE}"],
        [inside, str(WORKER), "--about", "llama"],
    ]
    variables = {**clean_variables(), "BUILD_CUDA_EXT": "0"}
    try:
        for step in steps:
            subprocess.run(step, env=variables, check=True, stdout=sys.stderr)
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if not isinstance(error, (OSError, subprocess.SubprocessError)):
            raise
        raise NpftError(
            f"autogptq's environment {str(folder)!r} could not be made ({in_one_line(error)}): "
            "see what that step says above, and try again"
        ) from error


def main() -> int:
    """The command line: make the environment."""
    parser = argparse.ArgumentParser(prog=MAKER, description=main.__doc__)
    parser.add_argument("--path", default="", help=f"folder to make it in, instead of {location()}")
    parser.add_argument("--python", default=sys.executable, help="the Python to base it on")
    asked = parser.parse_args()
    folder = location(asked.path).absolute()
    try:
        if not _serves(folder):
            make(folder, asked.python)
    except NpftError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(folder)
    return 0


def _serves(folder: Path) -> bool:
    try:
        require(str(folder), "llama")
    except Unavailable:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
