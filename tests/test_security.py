"""What SECURITY.md promises: nothing that is loaded runs code, calls home or leaves its folder."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_folders import quantized
from click.testing import CliRunner
from refusals import refusal
from rich.console import Console
from tiny import save_tiny

from npft import checkpoints, config, models
from npft.artifacts import Report, Row
from npft.cli import cli
from npft.cli.options import configure
from npft.folder import RunFolder, opened
from npft.ledger import Ledger, Record
from npft.progress import Silent
from npft.quantizers import RTN
from npft.report import table

TRAP = """
import pathlib
pathlib.Path(__file__).with_name("sprung").write_text("")
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
class Config(LlamaConfig):
    model_type = "trap"
class Model(LlamaForCausalLM):
    config_class = Config
class Words(PreTrainedTokenizerFast):
    pass
"""
"""A model's own code, which leaves a file behind wherever it is run."""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny") / "model", num_hidden_layers=1)


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], Path]:
    """Lays a trap in a copy of a folder; whether it sprang is told by ``sprung``."""
    cache = str(tmp_path / "modules")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", cache)
    monkeypatch.syspath_prepend(cache)

    def lay(folder: Path) -> Path:
        copied = Path(shutil.copytree(folder, tmp_path / "trap"))
        (copied / "trap.py").write_text(TRAP)
        own = {"AutoConfig": "trap.Config", "AutoModelForCausalLM": "trap.Model"}
        change(copied / "config.json", auto_map=own, model_type="trap")
        words = {"AutoTokenizer": [None, "trap.Words"]}
        change(copied / "tokenizer_config.json", auto_map=words, tokenizer_class="Words")
        return copied

    return lay


def change(file: Path, **changes: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def sprung(tmp_path: Path) -> bool:
    return any(tmp_path.rglob("sprung"))


# Code


def test_a_models_own_code_does_not_run(tiny: Path, trap, tmp_path: Path) -> None:
    folder = trap(tiny)
    refusal(lambda: models.load(str(folder), device="cpu"), "--trust-remote-code")
    assert not sprung(tmp_path)


def test_it_runs_if_asked_for_so_the_trap_works(tiny: Path, trap, tmp_path: Path) -> None:
    folder = trap(tiny)
    models.load(str(folder), device="cpu", trust_remote_code=True)
    assert sprung(tmp_path)


def test_a_tokenizers_own_code_does_not_run(tiny: Path, trap, tmp_path: Path) -> None:
    folder = trap(tiny)
    shutil.copy(tiny / "config.json", folder / "config.json")
    refusal(lambda: models.load(str(folder), device="cpu"), "tokenizer", "custom code")
    assert not sprung(tmp_path)


def test_a_checkpoints_own_code_does_not_run(trap, tmp_path: Path) -> None:
    quantized(RTN(bits=4), num_hidden_layers=1).save(tmp_path / "whole")
    folder = trap(tmp_path / "whole")
    refusal(lambda: checkpoints.load(folder, device="cpu"), str(folder))
    assert not sprung(tmp_path)


class Evil:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return Path.touch, (self.file,)


def test_pickles_are_not_opened(tiny: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny, tmp_path / "model"))
    (folder / "model.safetensors").unlink()
    with (folder / "pytorch_model.bin").open("wb") as file:
        pickle.dump({"a": torch.ones(1), "b": Evil(tmp_path / "sprung")}, file)
    refusal(lambda: models.load(str(folder), device="cpu"), "--allow-pickle")
    refusal(lambda: models.load(str(folder), device="cpu", allow_pickle=True), "pickle")
    assert not sprung(tmp_path)


def test_pickles_under_another_name_are_no_safetensors(tiny: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny, tmp_path / "model"))
    (folder / "model.safetensors").write_bytes(pickle.dumps(Evil(tmp_path / "sprung")))
    refusal(lambda: models.load(str(folder), device="cpu"), "corrupt safetensors")
    assert not sprung(tmp_path)


@pytest.mark.parametrize(
    ("values", "flags", "flag"),
    [
        ({"trust_remote_code": True}, {"trust_remote_code": True}, "--trust-remote-code"),
        ({"allow_pickle": True}, {"allow_pickle": True}, "--allow-pickle"),
        ({"lm_eval": {"include_path": "x"}}, {"include_path": "x"}, "--include-path"),
        ({"lm_eval": {"tasks": ["a.yaml"]}}, {"tasks": "a.yaml"}, "--tasks"),
    ],
)
def test_configurations_of_others_give_no_leave(values, flags, flag, tmp_path: Path) -> None:
    """Neither by ``--config`` nor as part of a run folder."""
    written = {"model": "m", "output": "o", **values}
    file = tmp_path / "config.toml"
    file.write_text(config.dumps(config.make(written), {}))
    refusal(lambda: configure({"config": str(file)}), flag)
    refusal(lambda: configure({"output": str(tmp_path)}, config.read(file)), flag)
    configure({"config": str(file), "output": "o", **flags})


# The network

OFFLINE = """
import json, socket, sys
calls = []
def refuse(*arguments, **options):
    calls.append(repr(arguments[-1]))
    raise OSError("no network here")
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse
from click.testing import CliRunner
from npft.cli import cli
told = [CliRunner().invoke(cli, one).exit_code for one in json.loads(sys.argv[1])]
print(json.dumps([told, calls]))
"""


def offline(*commands: list[str]) -> tuple[list[int], list[str]]:
    """Exit codes, and what was called, in a process that is not told to stay offline."""
    shut = ("HF_", "TRANSFORMERS_")
    ran = subprocess.run(
        [sys.executable, "-c", OFFLINE, json.dumps(commands)],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
        env={name: value for name, value in os.environ.items() if not name.startswith(shut)},
    )
    codes, calls = json.loads(ran.stdout.splitlines()[-1])
    return codes, calls


def test_local_files_need_no_network(tiny: Path, tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    small = ["--samples", "2", "--context", "16", "--eval-samples", "1", "--epochs", "1"]
    small += ["--bits", "4", "--quant", "rtn"]
    codes, calls = offline(
        ["run", "--model", str(tiny), "--output", run, *small],
        ["report", run],
        ["quantize", run],
        ["eval", run],
        ["generate", run, "some", "--tokens", "2"],
    )
    assert codes == [0] * 5
    assert calls == []


def test_a_hub_id_needs_one_so_the_watch_works(tmp_path: Path) -> None:
    codes, calls = offline(["run", "--model", "some/model", "--output", str(tmp_path / "run")])
    assert codes == [1]
    assert calls


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json"])
def test_nothing_that_is_missing_is_looked_for_elsewhere(missing, tmp_path: Path) -> None:
    quantized(RTN(bits=4), num_hidden_layers=1).save(tmp_path / "q")
    (tmp_path / "q" / missing).unlink()
    codes, calls = offline(["generate", str(tmp_path / "q"), "some"])
    assert codes == [1]
    assert calls == []


# Places


def test_nothing_is_written_or_removed_through_a_link(tmp_path: Path) -> None:
    mine = tmp_path / "mine" / "rtn-4"
    mine.mkdir(parents=True)
    (mine / "kept").write_text("mine")
    run = tmp_path / "run"
    run.mkdir()
    (run / "quantized").symlink_to(mine.parent)
    (run / "merged").symlink_to(mine)
    folder = RunFolder(run)
    refusal(lambda: folder.write_text("quantized/rtn-4", "x"), "outside of its run folder")
    refusal(lambda: folder.write_text("../elsewhere", "x"), "outside of its run folder")
    folder.write_text("merged", "x")
    assert (run / "merged").read_text() == "x"
    assert (mine / "kept").read_text() == "mine"


@pytest.mark.parametrize("part", ["../mine", "/mine", "..", "scores/../../mine", "."])
def test_no_record_has_others_files_removed(part: str, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    folder = RunFolder(tmp_path / "run")
    (folder / "scores").mkdir(parents=True)
    ledger = Ledger(folder, Silent())
    absolute = str(mine) if part == "/mine" else part
    ledger.write("old", Record("1", {"model": "a"}, [absolute]))
    refusal(lambda: ledger.settle("model", "b"), "outside of its run folder")
    assert mine.is_dir()
    assert folder.path.is_dir()


def test_the_lock_follows_no_link(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.toml").write_text("")
    (run / ".lock").symlink_to(tmp_path / "mine")
    refusal(lambda: opened(run).__enter__(), "run")
    assert (tmp_path / "mine").read_text() == "mine"


def test_a_report_replaces_a_link(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    run = tmp_path / "run"
    run.mkdir()
    (run / "results.json").write_text('{"rows": []}')
    (run / "report.html").symlink_to(tmp_path / "mine")
    assert CliRunner().invoke(cli, ["report", str(run)]).exit_code == 0
    assert (tmp_path / "mine").read_text() == "mine"
    assert "<!doctype html>" in (run / "report.html").read_text()


# What is shown


def test_no_terminal_obeys_names_and_no_markup_is_read() -> None:
    hostile = "\x1b]0;owned\x07[red]x[/red][/]"
    rows = [
        Row(model, hostile, 4, 0, 4.0, hostile, metric, 1.0, 10, 5, variant=hostile, questions=n)
        for model in ("original", "tuned")
        for metric, n in (("kl", 0), ("perplexity", 0), (hostile, 3))
    ]
    console = Console(width=400, force_terminal=True, color_system=None)
    with console.capture() as captured:
        console.print(table.render(Report(rows, unavailable={hostile: hostile}, notes=[hostile])))
    shown = captured.get()
    assert "\x1b]" not in shown
    assert "\x07" not in shown
    assert shown.count("[red]x[/red][/]") >= 6
