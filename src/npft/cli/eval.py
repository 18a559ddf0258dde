"""``npft eval``."""

from __future__ import annotations

from typing import Any

import click

from npft.cli.options import configure_folder, output_options, run_options, task_options


@click.command("eval")
@click.argument("run", metavar="RUN")
@run_options
@task_options
@output_options
def command(run: str, quiet: bool, as_json: bool, **flags: Any) -> None:
    """Measure every model and packed checkpoint in the run folder RUN."""
    settings = configure_folder(run, flags)
    from npft import steps
    from npft.cli.interrupted import telling_how_to_go_on
    from npft.cli.screen import Screen, show
    from npft.plugins import discover

    with telling_how_to_go_on(settings.output):
        report = steps.evaluate(settings, discover(), Screen(quiet=quiet))
    show(report, as_json=as_json)
