"""The paper's Tables 1, 2, 5, 6, 7 and 9 and Figures 4 and 5, for any model.

    python benchmarks/tables.py --model MODEL --data FOLDER --output RUNS [STUDY ...]

FOLDER holds ``c4-calibration.jsonl``, ``c4-validation.jsonl`` and ``wikitext2-validation.txt``. A
study is one of main (Tables 1 and 2: original, control, released, paper, default),
calibration-size (5), layers (6), noise (7), calibration-text (9), gamma (Figure 4) and clean
(Figure 5); main alone unless told. Every case is kept as a run folder below RUNS with its
``config.toml``, adapter and losses, for ``theory.py`` (Figure 3) and ``npft eval``; its rows go to
RUNS/*.jsonl as they come. With --processes N, N of them share the cases, which pays on a GPU that
one of them cannot fill (start ``nvidia-cuda-mps-control -d`` first). Cases that have their rows
already are not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from departures import VARIANTS
from printing import report
from studies import STUDIES, Case, cases

from npft import comparison, config, data, folder, pipeline, stages
from npft.errors import NpftError
from npft.evaluation import harness
from npft.ledger import Ledger
from npft.plugins import discover
from npft.progress import Silent
from npft.provenance import environment

TEXTS = {"c4": "c4-validation.jsonl", "wikitext2": "wikitext2-validation.txt"}
CALIBRATION = "c4-calibration.jsonl"


def main() -> None:
    """Run what is missing, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("studies", nargs="*", metavar="STUDY", help=", ".join(STUDIES))
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3, help="of the study main")
    parser.add_argument("--samples", type=int, default=128, help="calibration windows")
    parser.add_argument("--context", type=int, default=512, help="tokens per window")
    parser.add_argument("--eval-samples", type=int, default=64, help="windows of each text")
    parser.add_argument("--epochs", type=int, help="instead of each recipe's")
    parser.add_argument(
        "--quant",
        nargs="+",
        default=["rtn", "rtn:group_size=64", "kmeans"],
        help="as in npft run; 'gptq' and 'awq:group_size=64' where they are installed",
    )
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 3])
    parser.add_argument(
        "--rows", nargs="+", metavar="ROW", help="only these, such as default or main-released-1"
    )
    parser.add_argument(
        "--tasks", nargs="+", default=[], help="of the harness, as piqa_local (with NPFT_DATA set)"
    )
    parser.add_argument("--include-path", help="folder of further task files")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--share", default="0/1", help="I/N: only every Nth case, from the Ith")
    parser.add_argument("--print", action="store_true", help="only print what there is")
    args = parser.parse_args()
    unknown = [study for study in args.studies if study not in STUDIES]
    if unknown:
        parser.error(f"there is no study {unknown[0]!r}: choose from {', '.join(STUDIES)}")
    args.studies = args.studies or ["main"]
    args.output.mkdir(parents=True, exist_ok=True)
    try:
        if not args.print:
            run(args)
    except NpftError as error:
        sys.exit(f"error: {error}")
    if alone(args):
        report(args.output)


def run(args: argparse.Namespace) -> None:
    """Measure, in this process or in several."""
    if args.processes == 1:
        return measure(args)
    shares = [f"{i}/{args.processes}" for i in range(args.processes)]
    started = [
        subprocess.Popen([*own_command(), "--processes", "1", "--share", share], env=on_gpu(i))
        for i, share in enumerate(shares)
    ]
    failed = [share for share, process in zip(shares, started, strict=True) if process.wait()]
    if failed:
        sys.exit(f"error: the processes {', '.join(failed)} failed; what they measured is kept")
    return None


def alone(args: argparse.Namespace) -> bool:
    """Whether this process has no part of another's work."""
    return bool(args.share == "0/1")


def on_gpu(index: int) -> dict[str, str]:
    """This environment, with one of the GPUs for a process: they are dealt out in turn."""
    gpus = torch.cuda.device_count()
    return {**os.environ, **({"CUDA_VISIBLE_DEVICES": str(index % gpus)} if gpus > 1 else {})}


def own_command() -> list[str]:
    """This very command again; a later --processes and --share override the earlier."""
    return [sys.executable, *sys.argv]


def measure(args: argparse.Namespace) -> None:
    """Run the cases of this process's share that have no rows yet."""
    index, of = map(int, args.share.split("/"))
    every = cases(args.studies, args.seeds)
    wanted = [c for c in every if not args.rows or {c.row, c.name} & set(args.rows)]
    mine = wanted[index::of]
    bench: Bench | None = None
    for case in mine:
        rows = args.output / f"{case.name}.jsonl"
        if rows.is_file():
            continue
        bench = bench or Bench(args)
        found = bench.case(case)
        draft = rows.with_suffix(".draft")
        draft.write_text("".join(json.dumps(row) + "\n" for row in found))
        draft.rename(rows)


class Bench:
    """The model and the texts, loaded once."""

    def __init__(self, args: argparse.Namespace) -> None:  # noqa: D107
        self.args = args
        self.catalog = discover()
        settings = self.settings(Case("main", "original"), args.output)
        parts = pipeline.plan(settings, self.catalog)
        with tempfile.TemporaryDirectory() as place, folder.create(Path(place) / "run") as kept:
            self.work = pipeline.workspace(settings, parts, self.catalog, kept, Silent())
        self.work = replace(self.work, tasks=harness.load(settings.lm_eval))
        self.references = stages.originals(self.work)

    def settings(self, case: Case, output: Path) -> config.RunConfig:
        """The configuration of a case."""
        values = dict(case.values)
        if self.args.epochs:
            values["tuning"] = {**values.get("tuning", {}), "epochs": self.args.epochs}
        return config.make(
            {
                "model": self.args.model,
                "output": str(output),
                "calibration": str(self.args.data / CALIBRATION),
                "evaluate": {name: str(self.args.data / file) for name, file in TEXTS.items()},
                "samples": self.args.samples,
                "context": self.args.context,
                "eval_samples": self.args.eval_samples,
                "seed": case.seed,
                "quant": [choice(text) for text in self.args.quant],
                "bits": self.args.bits,
                # Processes that share a GPU cannot each take what is free of it.
                "score_batch": 0 if alone(self.args) else 4,
                "lm_eval": self.tasks(),
                **values,
            }
        )

    def tasks(self) -> dict[str, Any]:
        """What the harness is asked."""
        if not self.args.tasks:
            return {}
        asked = {"tasks": self.args.tasks, "batch_size": 64}
        return asked | ({"include_path": self.args.include_path} if self.args.include_path else {})

    def case(self, case: Case) -> list[dict[str, Any]]:
        """Train and measure; the rows, each with the case that it is of."""
        settings = self.settings(case, self.args.output / case.name)
        parts = pipeline.plan(settings, self.catalog)
        with folder.create(Path(settings.output)) as kept:
            work = replace(
                self.work,
                ledger=Ledger(kept, Silent()),
                seed=settings.seed,
                scorer=parts.scorer,
                calibration=self.windows(case, settings),
            )
            written = config.dumps(pipeline.in_full(settings, parts), environment(work))
            kept.write_text(folder.CONFIG, written)
            variant = self.trained(case, settings, parts, work)
            done = comparison.measure(work, variant, self.references)
            rows = [row for part in done for row in part.rows]
        about = {"study": case.study, "row": case.row, "seed": case.seed}
        shown = [{**about, **asdict(row)} for row in rows]
        seconds = {name: round(value, 1) for name, value in work.ledger.clock.seconds.items()}
        print(case.name, json.dumps(seconds), cells(shown), file=sys.stderr, flush=True)
        return [{**about, "seconds": seconds, "environment": environment(work)}, *shown]

    def trained(self, case: Case, settings: Any, parts: Any, work: Any) -> Any:
        """The model of a case."""
        if case.trains == "nothing":
            return stages.original(work)
        if case.trains == "control":
            adapter = stages.control(work, parts.objective, parts.tuning)
        else:
            keep = parts.sampler.needs_sensitivity
            scored = stages.score(work, settings.gamma, settings.scope, keep=keep)
            with VARIANTS[case.trains](work.model):
                adapter = stages.tune(work, scored, parts.sampler, parts.objective, parts.tuning)
        return stages.tuned(work, case.trains, adapter)

    def windows(self, case: Case, settings: config.RunConfig) -> Any:
        """Calibration windows; those of WikiText-2 are what evaluation leaves over."""
        tokenizer = self.work.model.tokenizer
        file = CALIBRATION if case.calibration == "c4" else TEXTS[case.calibration]
        source = str(self.args.data / file)
        split = "calibration" if case.calibration == "c4" else "held-back"
        cut = data.windows(tokenizer, data.load_text(source, split), settings.context, source)
        if case.calibration != "c4":
            cut = cut[settings.eval_samples :]
        return data.choose(cut, settings.samples, settings.seed)


def choice(text: str) -> dict[str, Any]:
    """``rtn:group_size=64`` as a plugin and its options."""
    name, _, options = text.partition(":")
    pairs = (pair.split("=") for pair in options.split(",") if pair)
    return {"name": name, **{key: int(value) for key, value in pairs}}


def cells(rows: list[dict[str, Any]]) -> str:
    """The KL of every setting in one line."""
    found = (row for row in rows if row["metric"] == "kl")
    return " ".join(
        f"{r['quantizer']}-{r['bits']}-{r['group_size']}:{r['dataset']}={r['value']:.4f}"
        for r in found
    )


if __name__ == "__main__":
    main()
