"""The command line: one file per verb; the only place that prints or catches NpftError."""

from __future__ import annotations

import sys
from importlib import import_module

import click

from npft.cli.launched import idle
from npft.errors import NpftError

VERBS = (
    "run",
    "score",
    "tune",
    "quantize",
    "eval",
    "report",
    "generate",
    "bench",
    "lens",
    "plugins",
)


class Verbs(click.Group):
    """Imports a verb's file when the verb is used, so that ``--help`` answers at once."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        command: click.Command = import_module(f"npft.cli.{cmd_name}").command
        return command


@click.command(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="npft")
@click.pass_context
def cli(context: click.Context) -> None:
    """Make language models robust to quantization before they are quantized."""
    if idle(context.invoked_subcommand):
        context.exit()


def main() -> None:
    """Entry point: mistakes in the input end in one sentence and status 1."""
    try:
        cli(prog_name="npft")
    except NpftError as error:
        sentence = str(error)
    except PermissionError as error:  # Path.is_file raises it where a folder above is closed
        sentence = f"{error.filename!r} may not be opened: change its permissions, or give another"
    else:
        return
    click.echo(f"npft: error: {sentence}", err=True)
    sys.exit(1)
