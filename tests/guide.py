"""The plugin guide: its blocks, and the means to follow it."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

FILE = Path(__file__).parents[1] / "docs" / "plugins.md"
TEXT = FILE.read_text(encoding="utf-8")

PRELUDE = """\
set -euo pipefail
python() { "$PYTHON" "$@"; }
pip() { "$PYTHON" -m pip "$@"; }
pytest() { "$PYTHON" -m pytest -p no:cacheprovider "$@"; }
npft() { "$PYTHON" -m npft "$@"; }
"""

OFFLINE = {
    "PIP_NO_INDEX": "1",
    "PIP_NO_DEPS": "1",
    "PIP_NO_BUILD_ISOLATION": "0",  # pip's way to say that there is none
    "PIP_UPGRADE": "1",  # of what is in PIP_TARGET
    "PIP_QUIET": "2",
    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
}
"""pip works without a network, on what the environment of the tests has."""


@dataclass(frozen=True)
class Block:
    """A fenced block of the guide; ``file`` is where its first line says that it belongs."""

    language: str
    text: str
    line: int

    @property
    def file(self) -> str:
        first, _, _ = self.text.partition("\n")
        return first.removeprefix("# ") if self.language in ("python", "toml") else ""

    @property
    def is_file(self) -> bool:
        return self.file.endswith((".py", ".toml")) and " " not in self.file


def blocks() -> list[Block]:
    """All of them, in order."""
    fences = [token for token in MarkdownIt().parse(TEXT) if token.type == "fence"]
    return [Block(t.info, t.content, t.map[0] + 1) for t in fences if t.map is not None]


def spans() -> list[str]:
    """All pieces of code within the text."""
    tokens = MarkdownIt().enable("table").parse(TEXT)
    children = [child for token in tokens for child in token.children or []]
    return [child.content for child in children if child.type == "code_inline"]


def rows() -> list[list[str]]:
    """Cells of every table row whose first cell is code."""
    lines = [line for line in TEXT.splitlines() if line.startswith("| `")]
    return [[cell.strip().strip("`") for cell in line.strip("| ").split(" | ")] for line in lines]


class Reader:
    """Follows the guide in a folder of its own, block by block, in one shell session."""

    def __init__(self, folder: Path) -> None:
        self.site = folder / "site"
        self.folder = folder / "work"
        self.folder.mkdir()

    def shell(self, script: str) -> str:
        """Run a block where the last one ended; its standard output."""
        end = self.site.with_suffix(".pwd")
        path = os.pathsep.join([str(self.site), os.environ.get("PYTHONPATH", "")])
        settings = {"PYTHON": sys.executable, "PYTHONPATH": path, "PIP_TARGET": str(self.site)}
        done = subprocess.run(
            ["bash", "-c", f"{PRELUDE}{script}\npwd > '{end}'"],
            capture_output=True,
            text=True,
            cwd=self.folder,
            env={**os.environ, **OFFLINE, **settings},
            check=False,
        )
        assert done.returncode == 0, script + done.stdout + done.stderr
        self.folder = Path(end.read_text().strip())
        return done.stdout
