"""``npft plugins new``: a package with one plugin that works, from templates."""

from __future__ import annotations

import os
import re
import tempfile
from importlib import metadata, util
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from npft.contracts import KINDS
from npft.errors import NpftError
from npft.plugins import api
from npft.plugins.catalog import Catalog

_PARTS = {
    "pyproject.toml": "pyproject.toml",
    "README.md": "README.md",
    ".gitignore": "gitignore",
    "src/{module}/__init__.py": "{kind}.py",
    "tests/test_{module}.py": "test_{kind}.py",
}
"""Files of a package, and the templates that they are made from."""


def write(name: str, kind: str, parent: Path, catalog: Catalog) -> Path:
    """Make the folder ``npft-NAME`` in ``parent``, whole or not at all.

    Args:
        name: the plugin's word on the command line, such as ``heavy-tail``.
        kind: one of :data:`npft.contracts.KINDS`.
        catalog: what is installed, whose names are taken.

    Raises:
        NpftError: the name is no such word, or is taken; the folder exists, or cannot be made.
    """
    _check(name, kind, catalog)
    package = f"npft-{name}"
    folder = parent / package
    if os.path.lexists(folder):
        raise NpftError(f"{str(folder)!r} is already there: choose another name, or remove it")
    values = {
        "name": name,
        "kind": kind,
        "package": package,
        "module": package.replace("-", "_"),
        "cls": _class(name, kind),
        "contract": KINDS[kind].__name__,
        "api": api.CURRENT,
        "npft": metadata.version("npft"),
    }
    try:
        with tempfile.TemporaryDirectory(dir=parent, prefix=f".{package}-") as place:
            whole = Path(place) / package
            for part, template in _PARTS.items():
                file = whole / part.format_map(values)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(_fill(template.format_map(values), values), encoding="utf-8")
            whole.rename(folder)
    except OSError as error:
        raise NpftError(
            f"{str(folder)!r} cannot be made ({error.strerror}): give another --folder"
        ) from error
    return folder


def _check(name: str, kind: str, catalog: Catalog) -> None:
    if re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name) is None or len(name) > 40:
        raise NpftError(
            f"{name!r} cannot be a plugin's name: give a word of up to 40 small letters, digits "
            "and single hyphens that begins with a letter, such as heavy-tail"
        )
    if name.startswith("npft-"):
        raise NpftError(
            f"the package of a plugin {name!r} would be npft-{name}: leave out npft-, which it "
            "gets by itself"
        )
    if name in catalog.names(kind):
        raise NpftError(
            f"the {kind} {name!r} exists already, in the package "
            f"{catalog.find(kind, name).package}: choose another name"
        )
    module = f"npft_{name.replace('-', '_')}"
    if util.find_spec(module) is not None:
        raise NpftError(
            f"there is a module {module} already, which a package npft-{name} would hide: choose "
            "another name"
        )


def _class(name: str, kind: str) -> str:
    """``heavy-tail`` as ``HeavyTailSampler``: its kind tells it from keywords and from imports."""
    words = name.removesuffix(f"-{kind}").split("-")
    return "".join(word.capitalize() for word in [*words, kind])


def _fill(template: str, values: dict[str, Any]) -> str:
    templates = Environment(
        loader=PackageLoader("npft.plugins"),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return templates.get_template(f"{template}.j2").render(values)
