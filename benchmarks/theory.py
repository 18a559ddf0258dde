"""Does tuning lower the curvature at the outliers, as the theory of NPFT says it does?

    python benchmarks/theory.py RUN [--bits 4] [--gamma 0.005] [--text NAME] [--json]

RUN is a finished run folder. The outliers are the original model's, by Fisher scores on the run's
calibration windows. At these positions the original, the control and the tuned model are measured
on held-back windows: the Hessian's trace (eq. 4), the loss increase under noise (eq. 6) and the
Fisher mass (eq. 3). RUN/figure3.png shows the Fisher scores of the outliers in one input channel
of an attention and of an MLP layer, before and after.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from torch import Tensor

from npft import adapters, config, data, models, outliers
from npft.artifacts import LanguageModel
from npft.config import RunConfig
from npft.errors import NpftError
from npft.evaluation.channels import Watch, fullest_channels
from npft.evaluation.curvature import fisher_mass, hessian_trace, noise_estimate
from npft.folder import CONFIG
from npft.grid import Grid
from npft.scorers import Fisher
from npft.seeding import generator

CALIBRATION = "calibration"
FOLDERS = {"original": "", "control": "control", "tuned": "adapter"}
"""Where a run folder has each model's adapter."""


def main() -> None:
    """Parse the arguments, measure and show."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("--probes", type=int, default=16, help="of the Hessian, per window")
    parser.add_argument("--draws", type=int, default=16, help="of noise, each with both signs")
    parser.add_argument("--windows", type=int, default=8, help="to measure on")
    parser.add_argument("--bits", type=int, default=4, help="of the grid that sets the noise")
    parser.add_argument("--gamma", type=float, default=0.005, help="share of outliers")
    parser.add_argument("--text", help="evaluation text of the run (its first), or calibration")
    parser.add_argument("--json", action="store_true", help="print JSON, not a table")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", module="(peft|transformers|torch)")
    try:
        found, watches = check(args)
        print(json.dumps(found, indent=2)) if args.json else Console().print(table(found))
        draw(watches, args.run / "figure3.png")
    except NpftError as error:
        sys.exit(f"error: {error}")


def check(args: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Watch]]:
    """The numbers of every model, and what the figure shows of it."""
    settings = config.make({**config.read(args.run / CONFIG), "output": str(args.run)})
    grid = Grid(args.bits)
    # Curvature needs float32, whatever the run was tuned in.
    original = models.load(
        settings.model,
        device=settings.device,
        trust_remote_code=settings.trust_remote_code,
        allow_pickle=settings.allow_pickle,
    )
    text = args.text or next(iter(settings.evaluate), CALIBRATION)
    batches = read(original, settings, text)[: args.windows]
    calibration = read(original, settings, CALIBRATION)
    chosen = outliers.select(Fisher().score(original, calibration), args.gamma)
    channels = fullest_channels(original, chosen)
    measured, watches = {}, {}
    for which, folder in FOLDERS.items():
        if which == "control" and not (args.run / folder).is_dir():
            continue
        adapter = adapters.load_adapter(args.run / folder) if folder else None
        model = adapters.merge(original, adapter) if adapter else original
        watches[which] = Watch(channels, chosen)
        mass = fisher_mass(watches[which].pass_on(Fisher().score(model, batches)), chosen)
        # The same streams for every model, so that differences are not those of luck.
        probing, noising = (generator(settings.seed, w, model.device) for w in ("probes", "noise"))
        trace = hessian_trace(model, chosen, batches, probes=args.probes, random=probing)
        noise = noise_estimate(model, chosen, batches, grid, draws=args.draws, random=noising)
        measured[which] = {
            "hessian_trace": asdict(trace),
            "noise_estimate": asdict(noise),
            "fisher_mass": mass.outliers,
            "fisher_share": mass.outliers / mass.total,
        }
    found = {"gamma": args.gamma, "outliers": sum(map(len, chosen.values())), "bits": args.bits}
    on = {"text": text, "windows": len(batches), "context": settings.context}
    return {**found, **on, "models": measured}, watches


def read(model: LanguageModel, settings: RunConfig, text: str) -> list[Tensor]:
    """The windows of one of the run's texts, one to a batch."""
    sources = {CALIBRATION: settings.calibration, **settings.evaluate}
    if text not in sources:
        raise NpftError(f"the run has no text {text!r}: choose from {', '.join(sources)}")
    split = CALIBRATION if text == CALIBRATION else "held-back"
    documents = data.load_text(sources[text], split)
    windows = data.windows(model.tokenizer, documents, settings.context, sources[text])
    if text == CALIBRATION:
        windows = data.choose(windows, settings.samples, settings.seed)
    return list(data.batches(windows, 1, model.device))


def table(found: dict[str, Any]) -> Table:
    """One line per model, and below it the change against the original."""
    title = "{outliers:,} outliers (gamma {gamma}), {windows} x {context} tokens of {text}"
    shown = Table(title=title.format(**found), title_justify="left")
    shown.add_column("model", no_wrap=True)
    noise = f"noise, {found['bits']} bits\n(nats/token)"
    for column in ("Hessian trace", noise, "Fisher mass", "its share"):
        shown.add_column(column, justify="right", no_wrap=True)
    first = found["models"]["original"]
    for which, measured in found["models"].items():
        line = [which]
        for key in ("hessian_trace", "noise_estimate"):
            (value, error), (before, unsure) = measured[key].values(), first[key].values()
            line.append(f"{value:.3g} ± {error:.2g}{change(value, before, unsure)}")
        mass, before = measured["fisher_mass"], first["fisher_mass"]
        line.append(f"{mass:.3g}{change(mass, before)}")
        shown.add_row(*line, f"{measured['fisher_share']:.1%}")
    return shown


def change(value: float, before: float, unsure: float = 0.0) -> str:
    """A second line such as -12%; nothing for the original, or where it may as well be zero."""
    return f"\n{value / before - 1:+.0%}" if before > 2 * unsure and value != before else ""


def draw(watches: dict[str, Watch], file: Path) -> None:
    """Figure 3: scores of the outliers in a channel, over the output channels."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise NpftError(f"{file.name} needs matplotlib: pip install matplotlib") from error
    channels = list(watches["original"].seen)
    canvas = Figure(figsize=(5 * len(channels), 4), layout="constrained")
    panels = canvas.subplots(1, len(channels), squeeze=False)[0]
    for axes, channel in zip(panels, channels, strict=True):
        for which, colour, shift in (("original", "tab:red", -0.2), ("tuned", "tab:blue", 0.2)):
            rows, scores = watches[which].seen[channel]
            axes.vlines(rows + shift, 0, scores, colour, alpha=0.8, linewidth=1, label=which)
        axes.set_title(f"{channel.layer}, input {channel.input}", fontsize="medium")
        axes.set(xlabel="output channel", ylabel="sensitivity (Fisher)", ylim=(0, None))
        axes.legend()
    canvas.savefig(file, dpi=150)


if __name__ == "__main__":
    main()
