"""``npft plugins``."""

from __future__ import annotations

import json

import click


@click.command("plugins")
@click.option("--json", "as_json", is_flag=True, help="the catalog as JSON")
def command(as_json: bool) -> None:
    """List the plugins: kind, name, package, version and options."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from npft.errors import printable
    from npft.plugins import discover

    entries = sorted(discover(), key=lambda entry: (entry.kind, entry.name))
    if as_json:
        rows = [
            {
                "kind": entry.kind,
                "name": entry.name,
                "package": entry.package,
                "version": entry.version,
                "options": entry.options(),
            }
            for entry in entries
        ]
        print(json.dumps(rows, indent=2))
        return
    table = Table()
    for column in ("kind", "name", "package", "version", "options"):
        table.add_column(column)
    for entry in entries:
        options = "\n".join(f"{name}: {text}" for name, text in entry.options().items())
        cells = (entry.kind, entry.name, entry.package, entry.version, options or "-")
        table.add_row(*(Text(printable(cell)) for cell in cells))
    console = Console()
    Console(width=None if console.is_terminal else 120).print(table)
