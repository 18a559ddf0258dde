"""``npft bench``."""

from __future__ import annotations

import click

from npft.errors import NpftError


@click.command("bench")
@click.argument("run", metavar="[RUN]", required=False)
@click.option("--shape", metavar="NAME", help="random weights of this shape: llama-2-7b or tiny")
@click.option(
    "--of",
    type=click.Choice(["original", "control", "tuned"]),
    default="tuned",
    show_default=True,
    help="of which model in RUN",
)
@click.option(
    "--lengths",
    metavar="N,N,…",
    default="128,256,512,1024,2048",
    show_default=True,
    help="tokens to generate",
)
@click.option("--repeats", type=click.IntRange(1), default=5, show_default=True)
@click.option("--output", metavar="FILE.json", help="keep every number here")
@click.option("--plot", metavar="FILE.png", help="draw latency over length")
@click.option("--json", "as_json", is_flag=True, help="results as JSON")
@click.option("--quiet", is_flag=True, help="no progress")
def command(
    run: str | None,
    shape: str | None,
    of: str,
    lengths: str,
    repeats: int,
    output: str | None,
    plot: str | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Latency and memory of decoding on this GPU, beside the floor that its memory sets.

    For the packed checkpoints of the run folder RUN, which keeps the numbers in bench.json and
    shows them in report.html, or for random weights of a --shape.
    """
    import json
    from pathlib import Path

    if (run is None) == (shape is None):
        raise NpftError("npft bench needs a run folder or a --shape, one of the two")
    wanted = _lengths(lengths)
    from rich.console import Console

    from npft.cli.screen import Screen
    from npft.report import bench as table

    screen = Screen(quiet=quiet)
    if run is not None:
        from npft import folder, steps
        from npft.bench.by_run import of_run

        with folder.opened(Path(run)) as kept:
            result = of_run(Path(run), of, wanted, repeats, screen)
            steps.keep_bench(kept, result)
    else:
        from npft.bench.by_shape import of_shape

        result = of_shape(str(shape), wanted, repeats, screen)
    text = json.dumps(result.as_json(), indent=2) + "\n"
    if output:
        Path(output).write_text(text, encoding="utf-8")
    if plot:
        table.plot(result, Path(plot))
    if as_json:
        click.echo(text, nl=False)
    else:
        console = Console()
        Console(width=None if console.is_terminal else 120).print(table.render(result))


def _lengths(text: str) -> list[int]:
    try:
        lengths = sorted({int(part) for part in text.split(",")})
    except ValueError:
        lengths = []
    if not lengths or lengths[0] < 1:
        raise NpftError(f"--lengths {text!r} is not a list of positive numbers such as 128,256")
    return lengths
