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

    The same command with an --output that is there already goes on with it: what is done and does
    not depend on a changed option is not done again.

    Under accelerate launch or torchrun several processes share the scoring and the tuning.

    Without --model it runs a small demonstration on SmolLM2-135M.
    """
    from npft import pipeline
    from npft.cli.interrupted import telling_how_to_go_on
    from npft.cli.launched import together
    from npft.cli.screen import Screen, show
    from npft.plugins import discover

    with together(lambda: configure(flags)) as (settings, processes):
        screen = Screen(quiet=quiet or not processes.main)
        with telling_how_to_go_on(settings.output, new=True):
            report = pipeline.run(settings, discover(), screen, processes)
        if processes.main:
            show(report, as_json=as_json)
            screen.note(f"everything is in {settings.output}")
