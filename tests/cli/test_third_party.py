"""The package of docs/plugins.md, installed by pip and used from the command line."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import save_tiny

GUIDE = Path(__file__).parents[2] / "docs" / "plugins.md"


def _blocks() -> dict[str, str]:
    """The guide's code blocks by the file name in their first line."""
    found = re.findall(r"```\w+\n# (\S+)\n(.*?)```", GUIDE.read_text(), flags=re.DOTALL)
    return dict(found)


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder with the package, as pip installed it."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    for name, text in _blocks().items():
        (source / name).write_text(text)
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"),
            *("--no-build-isolation", "--target", str(target), str(source)),
        ],
        check=True,
    )
    return target


def _npft(installed: Path, *arguments: str) -> subprocess.CompletedProcess:
    path = os.pathsep.join([str(installed), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-m", "npft", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        check=False,
    )


def test_the_catalog_shows_it_with_its_package(installed) -> None:
    listed = json.loads(_npft(installed, "plugins", "--json").stdout)
    entry = next(entry for entry in listed if entry["name"] == "triangular")
    assert (entry["kind"], entry["package"]) == ("sampler", "npft-triangular")
    assert entry["version"] == "0.1.0"
    assert list(entry["options"]) == ["scale"]


def test_its_sampler_tunes_a_model_and_its_option_counts(installed, tmp_path) -> None:
    model = save_tiny(tmp_path / "tiny")
    flags = ["--model", str(model), "--samples", "4", "--context", "32", "--eval-samples", "2"]
    flags += ["--quant", "rtn", "--bits", "4", "--no-control", "--epochs", "1", "--quiet"]
    flags += ["--sampler", "triangular"]
    losses = []
    for scale in ("1.0", "0.25"):
        run = tmp_path / scale
        result = _npft(
            installed, "run", *flags, "-o", f"sampler.scale={scale}", "--output", str(run)
        )
        assert result.returncode == 0, result.stderr
        losses.append(json.loads((run / "losses.json").read_text())[0]["noisy"])
        assert 'name = "triangular"' in (run / "config.toml").read_text()
    # The KL under noise grows with the square of its size: 16 times for a quarter of the range.
    assert losses[0] / losses[1] == pytest.approx(16, rel=0.5)


def test_the_guides_check_passes(installed) -> None:
    check = (
        "from npft_triangular import Triangular\n"
        + re.findall(r"```python\n(from npft.testing.*?)```", GUIDE.read_text(), flags=re.DOTALL)[0]
    )
    path = os.pathsep.join([str(installed), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "PYTHONPATH": path}
    subprocess.run([sys.executable, "-c", check], env=env, check=True)
