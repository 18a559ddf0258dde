"""Imports point one way: cli, pipeline, stages, plugins, contracts, artifacts."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import npft

ROOT = Path(npft.__file__).parent

BUILT_INS = {"scorers", "samplers", "objectives", "quantizers"}

LAYERS: tuple[set[str], ...] = (
    {"errors", "progress", "seeding", "announcing", "precision", "clock", "gguf_header"},
    {"attention", "waiting"},
    {"grid", "losses", "low_rank", "recipes", "processes"},
    {"streaming"},
    {"artifacts"},
    {"contracts", "model_checks"},
    {"hooks", "models", "fingerprints"},
    {"packed"},
    {"checkpoints"},
    {"hf"},
    BUILT_INS,
    {"plugins", "data", "outliers", "adapters", "evaluation", "testing", "memory"},
    {"generation", "score_files"},
    {"bench", "lens"},
    {"noise", "finite", "compiling", "passes"},
    {"terms", "replay"},
    {"tuning"},
    {"config", "folder"},
    {"ledger"},
    {"report"},
    {"stages"},
    {"provenance"},
    {"comparison"},
    {"pipeline"},
    {"steps", "lm_eval_plugin"},
    {"cli"},
    {"__main__", ""},
)
"""Parts of the package from the bottom up: each may import what lies below it."""

WHEN_CALLED = {
    ("artifacts", "models"),
    ("artifacts", "checkpoints"),
    ("announcing", "hf"),
}
"""Imports upwards that happen inside a method, for the convenience of its callers."""

STAGES = BUILT_INS | {
    "models",
    "data",
    "outliers",
    "adapters",
    "noise",
    "finite",
    "attention",
    "passes",
    "replay",
    "terms",
    "tuning",
    "evaluation",
}

ONLY_IN = {
    "click": {"cli"},
    "rich": {"cli", "report"},
    "pluggy": {"hooks", "plugins"},
    "lm_eval": {"evaluation", "lm_eval_plugin"},
}


class Import(NamedTuple):
    """One import: of ``target`` by ``source``, both dotted, at the top or inside a function."""

    source: str
    target: str
    inside: bool

    @property
    def parts(self) -> tuple[str, str]:
        return part(self.source), part(self.target)


def part(module: str) -> str:
    """``npft.cli.run`` belongs to ``cli``."""
    return module.split(".")[1] if "." in module else ""


def modules() -> dict[str, ast.Module]:
    found = {}
    for file in sorted(ROOT.rglob("*.py")):
        names = ["npft", *file.relative_to(ROOT).with_suffix("").parts]
        name = ".".join(names[:-1] if names[-1] == "__init__" else names)
        found[name] = ast.parse(file.read_text(encoding="utf-8"))
    return found


MODULES = modules()


def imports_of(name: str, tree: ast.AST, inside: bool = False) -> Iterator[Import]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(name, alias.name, inside)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} has a relative import"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield Import(name, whole if whole in MODULES else node.module or "", inside)
        function = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        yield from imports_of(name, node, inside or function)


IMPORTS = [found for name, tree in MODULES.items() for found in imports_of(name, tree)]
OWN = [found for found in IMPORTS if found.target.split(".")[0] == "npft"]


def rank(name: str) -> int:
    return next(index for index, layer in enumerate(LAYERS) if name in layer)


def test_there_is_something_to_check() -> None:
    assert len(MODULES) > 30
    assert Import("npft.tuning.tune", "npft.noise", False) in OWN
    assert Import("npft.artifacts.model", "npft.models", True) in OWN


def test_every_part_has_its_place() -> None:
    placed = [name for layer in LAYERS for name in layer]
    assert len(placed) == len(set(placed))
    assert {part(name) for name in MODULES} - {""} <= set(placed), "give new parts a layer"


def points_down(found: Import) -> bool:
    source, target = found.parts
    if source == target or {source, target} <= BUILT_INS:
        return True
    return rank(target) < rank(source) or (found.inside and (source, target) in WHEN_CALLED)


def test_imports_point_down() -> None:
    upwards = [f"{f.source} imports {f.target}" for f in OWN if not points_down(f)]
    assert not upwards


def test_stages_and_built_ins_do_not_see_the_plugin_machinery() -> None:
    """Only the four lists of built-ins know the hook marker."""
    seeing = {f.source for f in OWN if part(f.source) in STAGES and part(f.target) == "plugins"}
    assert not seeing
    marked = {f.source for f in OWN if part(f.source) in STAGES and part(f.target) == "hooks"}
    assert marked == {f"npft.{name}" for name in BUILT_INS}


@pytest.mark.parametrize("library", ONLY_IN)
def test_libraries_of_the_edges_stay_there(library: str) -> None:
    users = {part(f.source) for f in IMPORTS if f.target.split(".")[0] == library}
    assert users
    assert users <= ONLY_IN[library]


def breaches(name: str) -> Iterator[str]:
    """Where a module does what only the command line may: print, read argv, swallow NpftError."""
    for node in ast.walk(MODULES[name]):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Name) and node.id == "print":
            yield f"{name}:{line} prints"
        if isinstance(node, ast.Attribute) and node.attr == "argv":
            yield f"{name}:{line} reads argv"
        catching = isinstance(node, ast.ExceptHandler) and "NpftError" in ast.unparse(node)
        if catching and not any(isinstance(inner, ast.Raise) for inner in ast.walk(node)):
            yield f"{name}:{line} swallows NpftError"


def test_only_the_command_line_prints_and_catches() -> None:
    assert not [found for name in MODULES if part(name) != "cli" for found in breaches(name)]
    assert any("swallows" in found for found in breaches("npft.cli"))


def test_help_imports_neither_torch_nor_transformers() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "npft", "--help"]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert "Usage: npft" in ran.stdout
    imported = {line.rsplit("|", 1)[-1].strip() for line in ran.stderr.splitlines()}
    assert "npft.cli" in imported
    heavy = {"torch", "transformers", "peft", "numpy", "pydantic", "safetensors"}
    assert not imported & heavy
