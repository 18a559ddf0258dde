"""``npft score``."""

from __future__ import annotations

from typing import Any

import click

from npft.cli.options import configure, run_options


@click.command("score")
@run_options
@click.option("--output", metavar="DIR", help="run folder to start")
@click.option("--quiet", is_flag=True, help="no progress")
def command(quiet: bool, **flags: Any) -> None:
    """Find the sensitive weights; starts a run folder."""
    from npft import steps
    from npft.cli.interrupted import telling_how_to_go_on
    from npft.cli.launched import together
    from npft.cli.screen import Screen
    from npft.plugins import discover

    with together(lambda: configure(flags)) as (settings, processes):
        screen = Screen(quiet=quiet or not processes.main)
        with telling_how_to_go_on(settings.output, new=True):
            steps.score(settings, discover(), screen, processes)
        if processes.main:
            click.echo(settings.output)
