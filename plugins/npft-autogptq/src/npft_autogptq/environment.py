"""The environment that AutoGPTQ lives in: where it is, and whether it is right.

AutoGPTQ 0.7.1 works only with libraries from the end of 2024, so it gets a virtual environment
of its own, pinned by ``worker-requirements.txt``; :mod:`npft_autogptq.make_environment` makes it.
"""

from __future__ import annotations

import functools
import json
import os
import shlex
import subprocess
from pathlib import Path
from typing import Any

import platformdirs

from npft.errors import Unavailable

VARIABLE = "NPFT_AUTOGPTQ_ENVIRONMENT"
"""The environment variable that may say where the environment is."""

PACKAGE = "0.7.1"
"""The version of auto-gptq."""

WORKER = Path(__file__).with_name("worker")
REQUIREMENTS = Path(__file__).with_name("worker-requirements.txt")
MAKER = "python -m npft_autogptq.make_environment"

_DECISIVE = ("auto-gptq", "transformers", "peft")
"""The packages whose versions must be those of the requirements; torch may be another build."""


def location(asked: str = "") -> Path:
    """The environment's folder: ``asked``, else ``$NPFT_AUTOGPTQ_ENVIRONMENT``, else the cache."""
    chosen = asked or os.environ.get(VARIABLE) or platformdirs.user_cache_dir("npft-autogptq")
    return Path(chosen).expanduser()


def interpreter(folder: Path) -> Path:
    """The Python of an environment."""
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def require(asked: str, model_type: str) -> Path:
    """The environment's Python, once it is known to serve for models of ``model_type``.

    Raises:
        Unavailable: there is no such environment, it is broken or has other versions than the
            pinned ones, or its transformers does not know the model type.
    """
    folder = location(asked)
    python = interpreter(folder)
    make = MAKER if not asked else f"{MAKER} --path {shlex.quote(str(folder))}"
    if not python.is_file():
        raise Unavailable(
            f"autogptq needs an environment of its own, and {str(folder)!r} has none: make it "
            f"with `{make}`"
        )
    about = _about(python, model_type, make)
    wanted = pins()
    for package in _DECISIVE:
        if about["versions"].get(package) != wanted[package]:
            raise Unavailable(
                f"autogptq's environment {str(folder)!r} has {package} "
                f"{about['versions'].get(package) or 'missing'}, not {wanted[package]}: remove "
                f"that folder, and make it anew with `{make}`"
            )
    if not about["knows"]:
        raise Unavailable(
            f"autogptq cannot quantize a {model_type!r} model, which its transformers "
            f"{wanted['transformers']} does not know: use gptq"
        )
    return python


def pins() -> dict[str, str]:
    """Package to version, as the requirements pin them."""
    lines = REQUIREMENTS.read_text(encoding="utf-8").splitlines()
    pinned = (line.split("==") for line in lines if "==" in line)
    return {name.strip(): version.strip() for name, version in pinned} | {"auto-gptq": PACKAGE}


def clean_variables() -> dict[str, str]:
    """This process's environment variables without those that would lead another Python astray."""
    astray = ("PYTHONPATH", "PYTHONHOME", "PIP_CONSTRAINT", "PIP_REQUIREMENT", "VIRTUAL_ENV")
    return {key: value for key, value in os.environ.items() if key not in astray}


@functools.cache
def _about(python: Path, model_type: str, make: str) -> dict[str, Any]:
    command = [str(python), str(WORKER), "--about", model_type]
    try:
        ran = subprocess.run(
            command, capture_output=True, text=True, env=clean_variables(), timeout=300, check=True
        )
        found: dict[str, Any] = json.loads(ran.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        said = getattr(error, "stderr", None) or str(error)
        why = said.strip().splitlines()[-1]
        raise Unavailable(
            f"autogptq's environment {str(python.parent.parent)!r} does not work ({why}): remove "
            f"that folder, and make it anew with `{make}`"
        ) from error
    return found
