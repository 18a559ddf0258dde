"""The check of the theory, on a tiny run."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
from tiny import save_tiny

from npft import config, pipeline
from npft.plugins import discover

THEORY = Path(__file__).parents[1] / "benchmarks" / "theory.py"

QUICK = ["--gamma", "0.02", "--probes", "2", "--draws", "2", "--windows", "3"]


@pytest.fixture(scope="module")
def theory() -> ModuleType:
    spec = importlib.util.spec_from_file_location("theory", THEORY)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("theory")
    values = {
        "model": str(save_tiny(folder / "model", "GPT2")),
        "output": str(folder / "run"),
        "samples": 6,
        "context": 32,
        "eval_samples": 3,
        "tuning": {"epochs": 1, "batch_size": 3, "rank": 4},
        "quant": [{"name": "rtn"}],
        "bits": [4],
        "device": "cpu",
    }
    pipeline.run(config.make(values), discover())
    return folder / "run"


def test_every_model_is_measured_and_the_figure_drawn(
    theory, finished, monkeypatch, capsys
) -> None:
    pytest.importorskip("matplotlib")
    before = (finished / "config.toml").read_bytes()
    monkeypatch.setattr(sys, "argv", ["theory", str(finished), "--json", *QUICK])
    theory.main()
    found = json.loads(capsys.readouterr().out)
    assert list(found["models"]) == ["original", "control", "tuned"]
    assert (found["text"], found["windows"], found["context"]) == ("builtin", 3, 32)
    weights = 2 * (32 * 96 + 32 * 32 + 2 * 32 * 128)
    assert found["outliers"] == pytest.approx(0.02 * weights, abs=8)
    for measured in found["models"].values():
        assert measured["fisher_mass"] > 0
        assert 0 < measured["fisher_share"] < 1
        assert measured["hessian_trace"]["standard_error"] > 0
        assert measured["noise_estimate"]["standard_error"] > 0
    assert (finished / "figure3.png").read_bytes().startswith(b"\x89PNG")
    assert (finished / "config.toml").read_bytes() == before


def test_without_matplotlib_there_is_the_table_and_one_sentence(
    theory, finished, monkeypatch, capsys
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setattr(sys, "argv", ["theory", str(finished), *QUICK, "--text", "calibration"])
    with pytest.raises(SystemExit, match=r"figure3.png needs matplotlib: pip install matplotlib"):
        theory.main()
    printed = capsys.readouterr().out
    assert "3 x 32 tokens of calibration" in printed
    for word in ("original", "control", "tuned", "±", "%"):
        assert word in printed


def test_an_unknown_text_and_a_folder_without_a_run_are_refused(
    theory, finished, tmp_path, monkeypatch
) -> None:
    for arguments, match in (
        ([str(finished), "--text", "nowhere"], "choose from calibration, builtin"),
        ([str(tmp_path)], "cannot be read"),
    ):
        monkeypatch.setattr(sys, "argv", ["theory", *arguments])
        with pytest.raises(SystemExit, match=match):
            theory.main()
