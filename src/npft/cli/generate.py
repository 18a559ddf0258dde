"""``npft generate``."""

from __future__ import annotations

import click


@click.command("generate")
@click.argument("run", metavar="RUN")
@click.argument("prompt")
@click.option("--quant", metavar="SETTING", help="which checkpoint, such as kmeans-4")
@click.option(
    "--of",
    type=click.Choice(["original", "control", "tuned"]),
    default="tuned",
    show_default=True,
    help="of which model",
)
@click.option("--tokens", type=int, default=128, show_default=True, help="new tokens at most")
@click.option("--temperature", type=float, default=0.0, show_default=True, help="0 is greedy")
@click.option("--seed", type=int, default=0, show_default=True, help="of what is drawn")
@click.option("--device", metavar="DEVICE", default="auto", help="auto, cpu, cuda or cuda:N")
@click.option("--dtype", metavar="DTYPE", help="default bfloat16 on a GPU, float32 on the CPU")
def command(
    run: str,
    prompt: str,
    quant: str | None,
    of: str,
    tokens: int,
    temperature: float,
    seed: int,
    device: str,
    dtype: str | None,
) -> None:
    """Continue PROMPT with a packed checkpoint of the run folder RUN.

    RUN may also be the folder of a checkpoint. The model runs on its packed weights.
    """
    from pathlib import Path

    from npft import generation
    from npft.cli.screen import quiet_libraries
    from npft.errors import printable

    quiet_libraries()
    path = generation.checkpoint_of(Path(run), quant, of)
    model = generation.load(path, device=device, dtype=dtype)
    text = generation.generate(model, prompt, tokens, temperature=temperature, seed=seed)
    click.echo(printable(text))
