"""docs/plugins.md can be followed to the letter, and says what the code says."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, get_origin

import guide
import pytest
from guide import Block, Reader
from tiny import save_tiny

from npft import contracts, hooks, plugins, testing

BLOCKS = guide.blocks()
PIECES = [block for block in BLOCKS if block.language == "python" and not block.is_file]


# It can be followed


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Reader, list[str]]:
    """One who has done all that the guide says, and what the shell printed."""
    reader, printed = Reader(tmp_path_factory.mktemp("guide")), []
    model = save_tiny(reader.folder / "tiny")
    for block in BLOCKS:
        if block.is_file and block.language == "python":
            assert (reader.folder / block.file).is_file(), "the package has no such file"
            (reader.folder / block.file).write_text(block.text.partition("\n")[2])
        elif block.language == "sh":
            here = reader.folder / "my-model"
            if "my-model" in block.text and not here.exists():
                here.symlink_to(model)
            printed.append(reader.shell(block.text))
    return reader, printed


def test_it_ends_with_a_tuned_model_and_something_to_publish(
    followed: tuple[Reader, list[str]],
) -> None:
    reader, printed = followed
    config = tomllib.loads((reader.folder / "runs/heavy-tail/config.toml").read_text())
    assert config["sampler"] == {"name": "heavy-tail", "share": 0.01, "width": 6.0}
    built = {file.name for file in (reader.folder / "dist").iterdir()}
    assert built == {
        "npft_heavy_tail-0.1.0-py3-none-any.whl",
        "npft_heavy_tail-0.1.0.tar.gz",
    }
    assert "heavy-tail" in printed[0]
    assert "4 passed" in printed[0], "two tests of the template, each with two parameters"
    assert "4 passed" in printed[1], "two tests of the guide, one with three parameters"
    assert "rtn-4" in printed[1]


def test_the_package_has_the_files_and_metadata_that_are_shown(
    followed: tuple[Reader, list[str]],
) -> None:
    reader, _ = followed
    tree = next(block.text for block in BLOCKS if block.language == "text").split()
    assert all((reader.folder / name).is_file() for name in tree)
    shown = next(tomllib.loads(block.text) for block in BLOCKS if block.language == "toml")
    written = tomllib.loads((reader.folder / "pyproject.toml").read_text())
    assert written["project"]["entry-points"] == shown["project"]["entry-points"]


def test_no_block_is_passed_over() -> None:
    assert {block.language for block in BLOCKS} == {"sh", "python", "toml", "text"}
    assert len(PIECES) >= 4


@pytest.mark.parametrize("block", PIECES, ids=lambda block: f"line {block.line}")
def test_pieces_run(block: Block) -> None:
    namespace: dict[str, Any] = {"__name__": f"guide_{block.line}"}
    code = compile("\n" * block.line + block.text, str(guide.FILE), "exec", dont_inherit=True)
    exec(code, namespace)
    made = [value for value in namespace.values() if inspect.isclass(value)]
    ours = [cls for cls in made if cls.__module__ == namespace["__name__"]]
    checked = [cls for cls in ours if issubclass(cls, contracts.Plugin)]
    assert len(checked) == 1
    testing.check_plugin(checked[0]())


# It says what the code says


def signature(function: Any) -> str:
    """As the guide writes it: without quotes around types, and without self."""
    text = str(inspect.signature(function)).replace("'", "")
    return re.sub(r"^\(self(, )?", "(", text)


def members() -> Iterator[str]:
    """Everything that the classes of ``npft.contracts`` define for authors."""
    for name, cls in vars(contracts).items():
        if not inspect.isclass(cls) or cls.__module__ != contracts.__name__:
            continue
        for member, value in vars(cls).items():
            if inspect.isfunction(value) and not member.startswith("_"):
                yield f"{name}.{member}{signature(value)}"
            elif isinstance(value, property):
                yield f"{name}.{member}: {inspect.signature(value.fget).return_annotation}"
        for member, kind in inspect.get_annotations(cls, eval_str=True).items():
            if cls is contracts.Plugin or member.startswith("_"):
                continue
            if get_origin(kind) is ClassVar:
                yield f"{name}.{member}: {kind.__args__[0].__name__} = {getattr(cls, member)}"
            else:
                default = cls.model_fields[member].default
                yield f"{name}.{member}: {kind.__name__} = {default}"


def functions() -> Iterator[str]:
    for name, hook in vars(hooks.Hooks).items():
        if name.startswith("npft_"):
            yield name + signature(hook)
    for name in testing.__all__:
        yield name + signature(getattr(testing, name))


@pytest.mark.parametrize("line", [*members(), *functions()])
def test_every_contract_hook_and_check_is_there_with_its_signature(line: str) -> None:
    assert line in guide.spans()


def test_no_signature_is_of_something_that_is_gone() -> None:
    shown = {span for span in guide.spans() if re.match(r"[\w.]+\(.*\) -> ", span)}
    shown |= {span for span in guide.spans() if re.match(r"[A-Z]\w+\.\w+: ", span)}
    assert shown == {*members(), *functions()}


def test_every_dotted_name_exists() -> None:
    names = {span for span in guide.spans() if re.fullmatch(r"npft(\.\w+)+", span)}
    assert len(names) > 15
    for name in names - {hooks.API_GROUP}:
        module, _, attribute = name.rpartition(".")
        if not hasattr(importlib.import_module(module), attribute):
            importlib.import_module(name)


def test_the_version_is_todays() -> None:
    assert f"now {plugins.api.CURRENT}." in guide.TEXT


# Every message


def messages() -> Iterator[tuple[str, re.Pattern[str]]]:
    """Where a message of ``npft.plugins`` is raised, and what it looks like."""
    for file in sorted(Path(plugins.__file__).parent.glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                texts = [arg for arg in node.exc.args if isinstance(arg, ast.JoinedStr)]
            elif isinstance(node, ast.FunctionDef) and node.name == "_problem":
                returns = [inner for inner in ast.walk(node) if isinstance(inner, ast.Return)]
                texts = [r.value for r in returns if isinstance(r.value, ast.JoinedStr)]
            else:
                continue
            for text in texts:
                yield f"{file.name}:{text.lineno}", pattern(text)


def pattern(text: ast.JoinedStr) -> re.Pattern[str]:
    """The literal parts, and anything in between."""
    parts = [
        re.escape(str(value.value)).replace("\\\n", r"\s")
        if isinstance(value, ast.Constant)
        else ".*"
        for value in text.values
    ]
    return re.compile("".join(parts))


MESSAGES = list(messages())
TABLE = [cells[0] for cells in guide.rows() if not cells[0].startswith("npft.")]


def test_there_are_messages() -> None:
    assert len(MESSAGES) >= 22


@pytest.mark.parametrize(("where", "form"), MESSAGES, ids=[where for where, _ in MESSAGES])
def test_every_message_is_explained(where: str, form: re.Pattern[str]) -> None:
    assert any(form.fullmatch(row) for row in TABLE), form.pattern


@pytest.mark.parametrize("row", TABLE)
def test_no_explanation_is_of_a_message_that_is_gone(row: str) -> None:
    assert any(form.fullmatch(row) for _, form in MESSAGES)
