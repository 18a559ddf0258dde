"""``npft tune``."""

from __future__ import annotations

from typing import Any

import click

from npft.cli.options import configure_folder, run_options


@click.command("tune")
@click.argument("run", metavar="RUN")
@run_options
@click.option("--quiet", is_flag=True, help="no progress")
def command(run: str, quiet: bool, **flags: Any) -> None:
    """Tune under noise, from the scores of the run folder RUN; the control too."""
    from npft import steps
    from npft.cli.interrupted import telling_how_to_go_on
    from npft.cli.launched import together
    from npft.cli.screen import Screen
    from npft.plugins import discover

    with together(lambda: configure_folder(run, flags, tasks=False)) as (settings, processes):
        screen = Screen(quiet=quiet or not processes.main)
        with telling_how_to_go_on(settings.output):
            steps.tune(settings, discover(), screen, processes)
        if processes.main:
            click.echo(f"{settings.output}/merged")
