"""``npft run``."""

from __future__ import annotations

from typing import Any

import click

from npft.cli.options import configure, output_options, run_options, task_options


@click.command("run")
@run_options
@task_options
@click.option("--output", metavar="DIR", help="run folder; default runs/MODEL-TIME")
@output_options
def command(quiet: bool, as_json: bool, **flags: Any) -> None:
    """Score, tune, quantize and evaluate a model in one go.

    Without --model it runs a small demonstration on SmolLM2-135M.
    """
    settings = configure(flags)
    from npft import pipeline
    from npft.cli.screen import Screen, show
    from npft.plugins import discover

    screen = Screen(quiet=quiet)
    report = pipeline.run(settings, discover(), screen)
    show(report, as_json=as_json)
    screen.note(f"everything is in {settings.output}")
