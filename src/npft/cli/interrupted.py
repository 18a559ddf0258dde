"""What Ctrl-C says."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click


class Stopped(click.ClickException):
    """Ends the command with one sentence, and the status that shells give to Ctrl-C."""

    exit_code = 130

    def show(self, file: object = None) -> None:
        click.echo(f"npft: {self.message}", err=True)


@contextmanager
def telling_how_to_go_on(output: str, *, new: bool = False) -> Iterator[None]:
    """A scope whose work goes into the run folder ``output``, where it can be gone on with.

    Args:
        output: the run folder.
        new: whether the command may have chosen the folder itself.

    Raises:
        Stopped: it was interrupted.
    """
    try:
        yield
    except KeyboardInterrupt as error:
        if not (Path(output) / "config.toml").is_file():
            raise Stopped("stopped before anything was kept") from error
        where = f" with --output {shlex.quote(output)}" if new else ""
        raise Stopped(
            f"stopped, and what is done is in {output}: the same command{where} goes on from there"
        ) from error
