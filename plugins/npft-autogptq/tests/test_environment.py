"""Where the environment is, and that it is made whole or not at all.

That making it works is shown by the environment that all other tests here run in.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from npft.errors import NpftError
from npft_autogptq import environment, make_environment


def test_location(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(environment.VARIABLE, str(tmp_path / "variable"))
    assert environment.location(str(tmp_path / "asked")) == tmp_path / "asked"
    assert environment.location() == tmp_path / "variable"
    monkeypatch.delenv(environment.VARIABLE)
    assert "npft-autogptq" in environment.location().parts


def test_everything_is_pinned() -> None:
    lines = environment.REQUIREMENTS.read_text(encoding="utf-8").splitlines()
    asked = [line for line in lines if not line.startswith("#")]
    assert len(asked) > 40
    assert all(line.count("==") == 1 for line in asked)
    pins = environment.pins()
    assert pins["transformers"] == "4.46.3"
    assert pins["auto-gptq"] == "0.7.1"


def test_a_folder_in_use_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(NpftError, match="is not empty: remove it, or give another --path"):
        make_environment.make(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_what_cannot_be_made_is_not_left_half_made(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    folder = tmp_path / "environment"
    with pytest.raises(NpftError, match="could not be made .Command.*pip.*try again"):
        make_environment.make(folder)
    assert not folder.exists()


def test_command_line_says_what_is_wrong(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["environment", "--path", str(tmp_path / "e"), "--python", "/no/such/python"]
    monkeypatch.setattr(sys, "argv", arguments)
    assert make_environment.main() == 1
    said = capsys.readouterr()
    assert said.err.startswith("error: autogptq's environment")
    assert said.err.count("\n") == 1
    assert said.out == ""
