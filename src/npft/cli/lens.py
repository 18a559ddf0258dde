"""``npft lens``."""

from __future__ import annotations

from typing import Any

import click

from npft.cli.options import configure, output_options
from npft.errors import NpftError

_ABOUT = ("model", "dtype", "seed", "evaluate", "calibration", "samples", "context")
"""What the rows depend on, of the configuration; each row has its number of tokens."""


@click.command("lens")
@click.option("--model", metavar="DIR|HUB_ID|FILE.gguf", help="the float model")
@click.option("--evaluate", metavar="NAME=TEXT", multiple=True, help="repeatable")
@click.option("--calibration", metavar="TEXT", help="for quantizers that need it")
@click.option("--samples", type=int, help="calibration windows")
@click.option("--context", type=int, help="tokens per window")
@click.option("--eval-samples", type=int, help="evaluation windows per text; default 8")
@click.option(
    "--target",
    "targets",
    type=click.Choice(["weights", "activations", "both"]),
    multiple=True,
    default=("weights", "activations"),
    show_default=True,
    help="what is perturbed, repeatable",
)
@click.option("--kind", "kinds", metavar="NAME", multiple=True, help="default all, repeatable")
@click.option(
    "--intensities",
    metavar="X,X,…",
    default="0.03,0.1,0.3",
    show_default=True,
    help="L2 norm of the perturbation over that of each matrix, or token",
)
@click.option(
    "--share", type=float, default=0.01, show_default=True, help="of values that are outliers"
)
@click.option(
    "--quant", metavar="NAME", multiple=True, help="whose residual; default rtn, nonuniform"
)
@click.option("--bits", type=int, multiple=True, help="of the quantizers; default 4 and 8")
@click.option("--seed", type=int, help="the one seed of all randomness")
@click.option("--device", metavar="DEVICE", help="auto, cpu, cuda or cuda:N")
@click.option("--dtype", metavar="DTYPE", help="float32, bfloat16 or float16")
@click.option("-o", "options", metavar="KIND.OPTION=VALUE", multiple=True, help="quant.NAME.…")
@click.option("--output", metavar="FILE.json", help="keep every number here")
@click.option("--plot", metavar="FILE.png", help="draw KL over intensity")
@output_options
def command(
    targets: tuple[str, ...],
    kinds: tuple[str, ...],
    intensities: str,
    share: float,
    output: str | None,
    plot: str | None,
    quiet: bool,
    as_json: bool,
    **flags: Any,
) -> None:
    """What each kind of perturbation costs: KL and perplexity against its size.

    Noise of several shapes, noise that grows or shrinks with |x|, clipping, noise on outliers
    alone or on the rest, and the residuals of quantizers, all of the same L2 norm in each matrix.
    """
    import json
    from dataclasses import asdict
    from importlib.metadata import version
    from pathlib import Path

    for file in (output, plot):
        if file and not Path(file).absolute().parent.is_dir():
            raise NpftError(f"{file!r} cannot be written: its folder is not there, make it first")
    wanted = _numbers(intensities)
    flags["quant"] = flags["quant"] or ("rtn", "nonuniform")
    flags["bits"] = flags["bits"] or (4, 8)
    flags["eval_samples"] = flags["eval_samples"] or 8
    settings = configure(flags)
    from rich.console import Console

    from npft import steps
    from npft.cli.screen import Screen
    from npft.lens.findings import reading
    from npft.lens.measuring import Settings
    from npft.plugins import discover
    from npft.report import lens as table

    chosen = Settings(
        targets=tuple(dict.fromkeys(targets)),  # type: ignore[arg-type]
        intensities=wanted,
        share=share,
        only=kinds,
        seed=settings.seed,
    )
    rows = steps.lens(settings, chosen, discover(), Screen(quiet=quiet))
    told = reading(rows)
    about = {"npft": version("npft"), **settings.model_dump(mode="json", include=set(_ABOUT))}
    found = {**about, "share": share, "rows": [asdict(row) for row in rows], "reading": told}
    text = json.dumps(found, indent=2) + "\n"
    if output:
        Path(output).write_text(text, encoding="utf-8")
    if plot:
        table.plot(rows, Path(plot), Path(settings.model).name)
    if as_json:
        click.echo(text, nl=False)
    else:
        console = Console()
        Console(width=None if console.is_terminal else 120).print(table.render(rows, told))


def _numbers(text: str) -> list[float]:
    try:
        return sorted({float(part) for part in text.split(",")})
    except ValueError as error:
        raise NpftError(
            f"--intensities {text!r} is not a list of numbers such as 0.03,0.1,0.3"
        ) from error
