"""docs/cli.md says what the command line says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from npft.cli import VERBS, cli
from npft.cli.reference import markdown

PAGE = (Path(__file__).parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")
COMMANDS = [[], *([verb] for verb in VERBS), ["plugins", "new"]]


def test_the_page_is_the_one_that_is_made() -> None:
    assert markdown() == PAGE, "run python -m npft.cli.reference > docs/cli.md"


def test_every_command_has_a_section() -> None:
    headings = re.findall(r"^## npft ?(.*)$", PAGE, flags=re.MULTILINE)
    assert headings == [" ".join(words) for words in COMMANDS]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_section_has_the_flags_of_the_help(words: list[str]) -> None:
    said = CliRunner().invoke(cli, [*words, "--help"], terminal_width=200).output
    described = re.findall(r"^  (-.*?)(?:  |$)", said, flags=re.MULTILINE)
    flags = {flag for text in described for flag in re.findall(r"(?<![\w-])--?[a-z][\w-]*", text)}
    section = PAGE.split(f"## {' '.join(['npft', *words])}\n")[1].split("\n## ")[0]
    shown = {
        flag
        for cell in re.findall(r"^\| `(.*?)` \|", section, flags=re.MULTILINE)
        for flag in re.findall(r"(?<![\w-])--?[a-z][\w-]*", cell)
    }
    assert shown == flags - {"-h", "--help"}
