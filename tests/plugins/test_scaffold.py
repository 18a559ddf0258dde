"""Packages from templates: really installed, tested and used; refused where they cannot be."""

from __future__ import annotations

import ast
import json
import os
import resource
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner
from packages import Install
from refusals import refusal, unprivileged
from tiny import save_tiny

from npft.cli import cli
from npft.contracts import KINDS
from npft.plugins import Catalog, api, discover, scaffold

EMPTY = Catalog([])


def new(*arguments: str) -> str:
    """Standard output of ``npft plugins new``."""
    result = CliRunner().invoke(cli, ["plugins", "new", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


# All four kinds, from nothing to a run


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A package of every kind, by kind."""
    parent = tmp_path_factory.mktemp("source")
    for kind in KINDS:
        said = new(f"my-{kind}", "--kind", kind, "--folder", str(parent))
        assert f"npft-my-{kind} has the {kind} my-{kind}" in said
    return {kind: parent / f"npft-my-{kind}" for kind in KINDS}


@pytest.fixture(scope="module")
def site(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where pip installed them."""
    target = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    options = ["--no-build-isolation", "--target", str(target)]
    subprocess.run([*pip, *options, *map(str, folders.values())], check=True)
    return target


def run(site: Path, *arguments: str, cwd: Path) -> str:
    """Standard output of a Python module that sees the installed packages."""
    path = os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": path},
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_their_own_tests_pass(folders: dict[str, Path], site: Path, tmp_path: Path) -> None:
    flags = ["-q", "-p", "no:cacheprovider", "--import-mode=importlib"]
    said = run(site, "pytest", *flags, *map(str, folders.values()), cwd=tmp_path)
    assert "passed" in said
    assert "skipped" not in said


def test_the_catalog_shows_them_at_once(site: Path, tmp_path: Path) -> None:
    listed = json.loads(run(site, "npft", "plugins", "--json", cwd=tmp_path))
    ours = {entry["kind"]: entry for entry in listed if entry["package"] != "npft"}
    for kind in KINDS:
        entry = ours[kind]
        assert (entry["name"], entry["package"]) == (f"my-{kind}", f"npft-my-{kind}")
        assert (entry["version"], entry["api"]) == ("0.1.0", api.CURRENT)
        assert len(entry["options"]) >= 1


def test_a_run_uses_all_four(site: Path, tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "tiny")
    flags = ["--samples", "4", "--context", "32", "--eval-samples", "2", "--epochs", "1"]
    flags += ["--quiet", "--json", "--no-control", "--bits", "4", "--gamma", "0.1"]
    plugins = [
        word
        for kind in KINDS
        for word in (f"--{'quant' if kind == 'quantizer' else kind}", f"my-{kind}")
    ]
    said = run(
        site, "npft", "run", "--model", str(model), *flags, *plugins, "--output", "run",
        cwd=tmp_path,
    )  # fmt: skip
    rows = json.loads(said)["rows"]
    assert {row["quantizer"] for row in rows} == {"none", "my-quantizer"}
    configured = tomllib.loads((tmp_path / "run" / "config.toml").read_text())
    for kind in ("scorer", "sampler", "objective"):
        assert configured[kind]["name"] == f"my-{kind}"


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_in_a_package(kind: str, folders: dict[str, Path]) -> None:
    folder = folders[kind]
    module = f"npft_my_{kind}"
    files = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    assert {
        "pyproject.toml",
        "README.md",
        ".gitignore",
        f"src/{module}/__init__.py",
        f"tests/test_{module}.py",
    } <= files
    text = "".join((folder / file).read_text() for file in files if not file.endswith(".pyc"))
    assert "{{" not in text
    code = ast.parse((folder / "src" / module / "__init__.py").read_text())
    tests = ast.parse((folder / "tests" / f"test_{module}.py").read_text())
    assert f"check_{kind}" in ast.unparse(tests)
    assert sum(isinstance(node, ast.FunctionDef) for node in tests.body) == 2
    classes = [node.name for node in code.body if isinstance(node, ast.ClassDef)]
    assert classes == [f"My{kind.capitalize()}"]


# Names


@pytest.mark.parametrize(
    ("name", "cls"),
    [
        ("heavy-tail", "HeavyTailSampler"),
        ("none", "NoneSampler"),
        ("sampler", "SamplerSampler"),
        ("two-bit-sampler", "TwoBitSampler"),
        ("a1", "A1Sampler"),
    ],
)
def test_any_name_makes_a_class_of_its_own(name: str, cls: str, tmp_path: Path) -> None:
    folder = scaffold.write(name, "sampler", tmp_path, EMPTY)
    module = f"npft_{name.replace('-', '_')}"
    assert folder == tmp_path / f"npft-{name}"
    assert f"class {cls}(Sampler):" in (folder / "src" / module / "__init__.py").read_text()


@pytest.mark.parametrize(
    "name",
    ["", "Tail", "heavy_tail", "4bit", "-a", "a-", "a--b", "a.b", "a/b", "../a", "ä", "a" * 41],
)
def test_a_name_that_is_no_word_is_refused(name: str, tmp_path: Path) -> None:
    refusal(lambda: scaffold.write(name, "scorer", tmp_path, EMPTY), repr(name), "small letters")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "kind", "parts"),
    [
        ("residual", "sampler", ["the sampler 'residual' exists already", "package npft:"]),
        ("kl", "objective", ["the objective 'kl' exists already", "package npft:"]),
        ("npft-tail", "sampler", ["npft-npft-tail", "leave out npft-"]),
    ],
)
def test_a_taken_name_is_refused(name: str, kind: str, parts: list[str], tmp_path: Path) -> None:
    refusal(lambda: scaffold.write(name, kind, tmp_path, discover()), *parts)
    assert not list(tmp_path.iterdir())


def test_a_name_may_be_that_of_another_kind(tmp_path: Path) -> None:
    assert scaffold.write("kl", "sampler", tmp_path, discover()).is_dir()


def test_an_installed_module_is_not_hidden(install: Install, tmp_path: Path) -> None:
    install("npft-mine", "raise RuntimeError('imported')")
    before = set(tmp_path.iterdir())
    refusal(lambda: scaffold.write("mine", "scorer", tmp_path, EMPTY), "a module npft_mine")
    assert set(tmp_path.iterdir()) == before


# Folders


@pytest.mark.parametrize("kind", ["folder", "file", "dangling link"])
def test_what_is_there_stays(kind: str, tmp_path: Path) -> None:
    place = tmp_path / "npft-tail"
    if kind == "folder":
        place.mkdir()
    elif kind == "file":
        place.write_text("mine")
    else:
        place.symlink_to("nowhere")
    refusal(lambda: scaffold.write("tail", "scorer", tmp_path, EMPTY), "is already there")
    assert list(tmp_path.iterdir()) == [place]


def test_no_folder_to_make_it_in(tmp_path: Path) -> None:
    refusal(
        lambda: scaffold.write("tail", "scorer", tmp_path / "nowhere", EMPTY),
        "cannot be made (No such file or directory)",
        "another --folder",
    )
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    with unprivileged():
        refusal(lambda: scaffold.write("tail", "scorer", tmp_path, EMPTY), "cannot be made")
    tmp_path.chmod(0o755)
    assert not list(tmp_path.iterdir())


def test_nothing_half_written_is_left(tmp_path: Path) -> None:
    """Files above 600 bytes cannot be written, which the plugin's is and pyproject.toml is not."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600, before[1]))
    try:
        refusal(lambda: scaffold.write("tail", "scorer", tmp_path, EMPTY), "(File too large)")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert not list(tmp_path.iterdir())


def test_the_catalog_in_json_goes_with_no_command() -> None:
    result = CliRunner().invoke(cli, ["plugins", "--json", "new", "tail", "--kind", "scorer"])
    assert result.exit_code == 2
    assert "--json lists the catalog" in result.output
