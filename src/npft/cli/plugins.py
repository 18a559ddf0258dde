"""``npft plugins``."""

from __future__ import annotations

import json
from typing import Any

import click

KINDS = ("scorer", "sampler", "objective", "quantizer")
# Of npft.contracts, which would import pydantic for every --help.


@click.group("plugins", invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="the catalog as JSON")
@click.pass_context
def command(context: click.Context, as_json: bool) -> None:
    """List the plugins: kind, name, package, version, API and options.

    API is the version of npft's API for which the package was written.
    """
    if context.invoked_subcommand is not None:
        if as_json:
            raise click.UsageError("--json lists the catalog, and goes with no command")
        return
    from npft.plugins import discover

    entries = sorted(discover(), key=lambda entry: (entry.kind, entry.name))
    rows = [
        {
            "kind": entry.kind,
            "name": entry.name,
            "package": entry.package,
            "version": entry.version,
            "api": entry.api,
            "options": entry.options(),
        }
        for entry in entries
    ]
    if as_json:
        print(json.dumps(rows, indent=2))
    else:
        _show(rows)


def _show(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from npft.errors import printable

    table = Table()
    for column in ("kind", "name", "package", "version", "API", "options"):
        table.add_column(column)
    for row in rows:
        options = "\n".join(f"{name}: {text}" for name, text in row["options"].items())
        cells = [*list(row.values())[:-1], options or "-"]
        table.add_row(*(Text(printable(cell)) for cell in cells))
    console = Console()
    Console(width=None if console.is_terminal else 120).print(table)


@command.command("new")
@click.argument("name")
@click.option("--kind", type=click.Choice(KINDS), required=True, help="what it is")
@click.option(
    "--folder", metavar="DIR", default=".", show_default=True, help="where its folder is made"
)
def new(name: str, kind: str, folder: str) -> None:
    """Write a package npft-NAME with a plugin NAME that works, and its tests.

    NAME is the word on the command line, such as heavy-tail.
    """
    from pathlib import Path

    from npft.plugins import discover, scaffold

    made = scaffold.write(name, kind, Path(folder), discover())
    click.echo(f"{made} has the {kind} {name}; to try it:\n")
    click.echo(f"    cd {made}\n    pip install '.[test]'\n    pytest\n    npft plugins")
