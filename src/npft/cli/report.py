"""``npft report``."""

from __future__ import annotations

import click

from npft.errors import NpftError


@click.command("report")
@click.argument("runs", metavar="RUN…", nargs=-1, required=True)
@click.option(
    "--output",
    metavar="FILE.html",
    help="default RUN/report.html, or comparison.html here for several runs",
)
def command(runs: tuple[str, ...], output: str | None) -> None:
    """One page on a run, or several runs side by side: tables, plots and every number.

    The page needs no network and no other file.
    """
    import os
    from pathlib import Path

    from npft.report import comparison, page
    from npft.report.reading import read_run

    found = [read_run(Path(run)) for run in runs]
    alone = len(found) == 1
    file = Path(output or (Path(runs[0]) / "report.html" if alone else "comparison.html"))
    text = page.render(found[0]) if alone else comparison.render(found)
    draft = file.with_name(f".{file.name}.part")
    try:
        draft.unlink(missing_ok=True)
        draft.write_text(text, encoding="utf-8")
        os.replace(draft, file)  # a link that somebody put there is replaced, not followed
    except OSError as error:
        raise NpftError(f"{str(file)!r} cannot be written: {error.strerror}") from error
    click.echo(str(file))
