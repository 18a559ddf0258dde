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
@click.option(
    "--float",
    "as_float",
    is_flag=True,
    help="also write each as an ordinary float model, below dequantized/",
)
@run_options
@click.option("--quiet", is_flag=True, help="no progress")
def command(run: str, which: tuple[str, ...], as_float: bool, quiet: bool, **flags: Any) -> None:
    """Quantize the models of the run folder RUN; prints the checkpoints' paths."""
    settings = configure_folder(run, flags, tasks=False)
    from npft import steps
    from npft.cli.interrupted import telling_how_to_go_on
    from npft.cli.screen import Screen
    from npft.plugins import discover

    screen = Screen(quiet=quiet)
    with telling_how_to_go_on(settings.output):
        paths = steps.quantize(settings, discover(), screen, which, as_float=as_float)
    for path in paths:
        click.echo(str(path))
