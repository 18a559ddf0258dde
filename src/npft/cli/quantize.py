"""``npft quantize``."""

from __future__ import annotations

from typing import Any

import click

from npft.cli.options import configure_folder, run_options


@click.command("quantize")
@click.argument("run", metavar="RUN")
@click.option(
    "--of",
    "which",
    type=click.Choice(["original", "control", "tuned"]),
    multiple=True,
    default=("tuned",),
    show_default=True,
    help="which model, repeatable",
)
@run_options
@click.option("--quiet", is_flag=True, help="no progress")
def command(run: str, which: tuple[str, ...], quiet: bool, **flags: Any) -> None:
    """Quantize the models of the run folder RUN; prints the checkpoints' paths."""
    settings = configure_folder(run, flags)
    from npft import steps
    from npft.cli.screen import Screen
    from npft.plugins import discover

    for path in steps.quantize(settings, discover(), Screen(quiet=quiet), which):
        click.echo(str(path))
