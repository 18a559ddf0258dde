"""The plugin sees only npft's contracts; the worker sees nothing of npft at all."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from npft_autogptq import environment

PACKAGE = environment.WORKER.parent
ALLOWED = {"artifacts", "contracts", "errors", "grid", "hooks", "progress", "testing"}


def imported(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def test_the_plugin_imports_only_contracts() -> None:
    found = {name for file in PACKAGE.glob("*.py") for name in imported(file)}
    assert "npft.contracts" in found
    ours = {name for name in found if name.split(".")[0] == "npft"}
    assert {name.split(".")[1] for name in ours} <= ALLOWED
    assert "auto_gptq" not in {name.split(".")[0] for name in found}


def test_the_worker_imports_no_npft() -> None:
    found = {name.split(".")[0] for f in environment.WORKER.glob("*.py") for name in imported(f)}
    assert "auto_gptq" in found
    assert not {name for name in found if name.startswith("npft")}
