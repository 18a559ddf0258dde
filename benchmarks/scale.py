"""Time and memory of scoring and tuning at scale, against the paper and the released code's way.

    python benchmarks/scale.py --rows score-resident tune-resident --output scale.jsonl

Models are random, of LLaMA-2-7B's shape unless the row says otherwise. Each row is printed and
appended to the output as it is done. ``--scale 0.05`` tries everything on a small model; without a
GPU that is the only sensible way.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from eager import eager_scores, eager_tuning, forward_backward
from scale_models import bandwidths, config, matrix_rate, resident, streamed, work_of
from torch import Tensor

from npft import outliers
from npft.artifacts import LanguageModel, Outliers
from npft.contracts import Objective
from npft.objectives import KL, CrossEntropy
from npft.samplers import StepUniform
from npft.scorers import Fisher
from npft.tuning import Tuning, tune

PAPER = {"score": (0.63 * 3600, 15.23), "tune": (0.40 * 3600, 6.11), "run": (1.03 * 3600, 15.23)}
"""Seconds and GB for LLaMA-2-7B (NPFT, section 4.3); its tuning reports the streamed memory."""

Row = dict[str, Any]


class Bench:
    """The machine, the sizes asked for, and where results go."""

    def __init__(self, args: argparse.Namespace) -> None:
        """Measure the machine's own rates first."""
        self.args = args
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        self.rate = matrix_rate(self.device, self.dtype, self.timed)
        self.memory, self.link = bandwidths(self.device, self.timed)
        name = torch.cuda.get_device_name() if self.device.type == "cuda" else "CPU"
        self.keep(
            {
                "row": "machine", "name": name, "torch": torch.__version__,
                "tflops": self.rate / 1e12, "memory_gb_s": self.memory / 1e9,
                "link_gb_s": self.link / 1e9,
            }
        )  # fmt: skip

    def timed(self, function: Callable[[], Any]) -> float:
        """Seconds until all of its work is done."""
        self.wait()
        start = time.perf_counter()
        function()
        self.wait()
        return time.perf_counter() - start

    def wait(self) -> None:
        """Until the device has nothing left to do."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def measured(self, function: Callable[[], Any]) -> tuple[float, float]:
        """Seconds, and the most GB that were allocated on the device meanwhile."""
        gc.collect()
        if self.device.type == "cpu":
            return self.timed(function), 0.0
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return self.timed(function), torch.cuda.max_memory_allocated() / 1e9

    def row(
        self, name: str, took: tuple[float, float], operations: float, of_bytes: float, **more: Any
    ) -> None:
        """Note a row; ``of_bytes`` come over the link to the host, beside the computation."""
        seconds, peak = took
        floor = max(operations / self.rate, of_bytes / self.link)
        paper = next((found for key, found in PAPER.items() if name.startswith(key)), None)
        if self.args.scale < 1 or "70b" in name:
            paper = None
        self.keep(
            {
                "row": name, "seconds": seconds, "peak_gb": peak, "operations": operations,
                "link_bytes": of_bytes, "floor_seconds": floor, "fraction": floor / seconds,
                "paper_seconds": paper[0] if paper else None,
                "paper_gb": paper[1] if paper else None, **more,
            }
        )  # fmt: skip

    def keep(self, row: Row) -> None:
        """Print a row and append it to the output."""
        print(
            "  ".join(
                f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in row.items()
            ),
            flush=True,
        )
        with self.args.output.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def windows(self, model: LanguageModel, count: int | None = None) -> Tensor:
        """Random token ids ``(windows, context)``."""
        shape = (count or self.args.windows, self.args.context)
        return torch.randint(model.network.config.vocab_size, shape)

    def make(self, mode: str, shape: str = "llama-2-7b", **options: Any) -> LanguageModel:
        """A random model of the scale asked for."""
        torch.manual_seed(0)
        build = resident if mode == "resident" else streamed
        return build(config(shape, self.args.scale), self.device, self.dtype, **options)


def scores(bench: Bench, model: LanguageModel, windows: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The scorer's stream."""
    tokens = windows.to(bench.device).split(bench.args.score_batch)
    return Fisher().score(model, tokens)


def select(bench: Bench, model: LanguageModel, windows: Tensor) -> dict[str, Outliers]:
    """Score and select."""
    return outliers.select(scores(bench, model, windows), bench.args.gamma, model.home)


def settings(bench: Bench, **changes: Any) -> Tuning:
    """The paper's, with eq. 7 as it stands."""
    values: dict[str, Any] = dict(
        epochs=3, rank=16, alpha=32, beta=0.5, terms="both", balance=False, noise_bits=(4,),
        batch_size=bench.args.tune_batch, lr=5e-5,
    )  # fmt: skip
    if "norms" in Tuning.model_fields:
        values["norms"] = False
    return Tuning(**{**values, **changes})


def objective(bench: Bench) -> Objective:
    """The one asked for."""
    return KL() if bench.args.objective == "kl" else CrossEntropy()


def score_row(bench: Bench, mode: str) -> None:
    """One pass of the scorer over all windows, and the choice of the outliers."""
    model = bench.make(mode)
    windows = bench.windows(model)
    select(bench, model, windows[: bench.args.score_batch])  # compiled kernels, pinned memory
    work = work_of(model, windows)
    took = bench.measured(lambda: select(bench, model, windows))
    operations = work.scoring(recomputed=mode == "streamed")
    bench.row(
        f"score-{mode}",
        took,
        operations,
        link_bytes(model, windows, 2),
        batch=bench.args.score_batch,
    )


def link_bytes(model: LanguageModel, windows: Tensor, loads: int) -> float:
    """What a streamed model brings over the link to the device."""
    if model.stream is None:
        return 0.0
    weights = sum(layer.weight.nbytes for layer in model.layers.values())
    state = windows.numel() * model.network.config.hidden_size * 2 * len(model.stream.blocks)
    return loads * weights + (3 * state if loads == 2 else 0)


def tune_row(bench: Bench, mode: str, *, rescore: bool = False) -> None:
    """The whole tuning; with ``rescore``, the whole run: scored first and before each epoch."""
    model = bench.make(mode)
    windows = bench.windows(model)
    work, batch = work_of(model, windows), bench.args.tune_batch
    original = objective(bench).needs_original

    def trained(chosen: dict[str, Outliers], part: Tensor, **changes: Any) -> None:
        again = lambda adapted: select(bench, adapted, windows)  # noqa: E731
        tune(
            model, part, chosen, StepUniform(), objective(bench), settings(bench, **changes),
            rescore=again,
        )  # fmt: skip

    chosen = select(bench, model, windows[: bench.args.score_batch])
    trained(chosen, windows[: 2 * batch], epochs=1)
    if rescore:
        took = bench.measured(lambda: trained(select(bench, model, windows), windows, rescore=True))
        operations = 3 * work.scoring() + work.tuning(3, 2, original)
        bench.row("run-resident", took, operations, 0.0, batch=batch)
        return
    took = bench.measured(lambda: trained(chosen, windows))
    steps = 3 * -(-len(windows) // batch)
    loads = link_bytes(model, windows, steps * (2 * 2 + original)) if mode == "streamed" else 0.0
    operations = work.tuning(3, 2, original, recomputed=mode == "streamed")
    bench.row(f"tune-{mode}", took, operations, loads, batch=batch, gamma=bench.args.gamma)


def score_70b(bench: Bench) -> None:
    """LLaMA-2-70B's shape: its 80 blocks share the host memory of four."""
    model = bench.make("streamed", "llama-2-70b", distinct=4)
    windows = bench.windows(model, bench.args.windows // 4)
    work = work_of(model, windows)
    took = bench.measured(lambda: select(bench, model, windows))
    bench.row(
        "score-70b", took, work.scoring(recomputed=True), link_bytes(model, windows, 2),
        windows=len(windows), distinct_blocks=4,
    )  # fmt: skip


def smollm2(bench: Bench) -> None:
    """Tokens per second of a small model, where launches count, against the plain eager loop."""
    model = bench.make("resident", "smollm2-135m")
    windows = bench.windows(model)
    few = windows[: max(2, len(windows) // 8)]
    for part in (few, windows):  # the first warms up
        mine = bench.timed(lambda part=part: select(bench, model, part))
    theirs = bench.timed(lambda: eager_scores(model, few.to(bench.device)))
    compare(bench, "smollm2-score", windows, mine, few, theirs)
    chosen = select(bench, model, few)
    for part in (few, windows):
        mine = bench.timed(
            lambda part=part: tune(
                model, part, chosen, StepUniform(), objective(bench), settings(bench, epochs=1)
            )
        )
    theirs = bench.timed(
        lambda: eager_tuning(model, few.to(bench.device), chosen, objective(bench))
    )
    compare(bench, "smollm2-tune", windows, mine, few, theirs)


def compare(
    bench: Bench, name: str, windows: Tensor, mine: float, few: Tensor, theirs: float
) -> None:
    """Tokens per second of ours and of the loop, which ran on fewer windows."""
    ours, loop = windows.numel() / mine, few.numel() / theirs
    bench.keep({"row": name, "tokens_s": ours, "eager_tokens_s": loop, "ratio": ours / loop})


def cpu(bench: Bench) -> None:
    """Scoring against a plain forward and backward pass, weights' gradients included."""
    device = torch.device("cpu")
    model = resident(config("smollm2-135m", bench.args.scale), device, torch.float32)
    windows = bench.windows(model, 4)[:, :256]
    plain = min(bench.timed(lambda: forward_backward(model, windows)) for _ in range(2))
    model.network.requires_grad_(False)
    mine = min(bench.timed(lambda: list(Fisher().score(model, windows.split(4)))) for _ in range(2))
    bench.keep(
        {"row": "cpu-score", "seconds": mine, "forward_backward": plain, "ratio": plain / mine}
    )


def released(bench: Bench) -> None:
    """The released code's way: a batch of one, then of two, with loops over the weights."""
    model = bench.make("resident")
    windows = bench.windows(model)
    few = windows[: max(2, len(windows) // 16)].to(bench.device)
    eager_scores(model, few[:1])
    took = bench.measured(lambda: eager_scores(model, few))
    factor = len(windows) / len(few)
    bench.keep(
        {
            "row": "released-score", "seconds": took[0] * factor, "peak_gb": took[1],
            "measured_windows": len(few), "scaled_by": factor,
        }
    )  # fmt: skip
    chosen = select(bench, model, few)
    eager_tuning(model, few[:2], chosen, objective(bench))
    took = bench.measured(lambda: eager_tuning(model, few, chosen, objective(bench)))
    bench.keep(
        {
            "row": "released-tune", "seconds": took[0] * factor * 3, "peak_gb": took[1],
            "measured_windows": len(few), "scaled_by": factor * 3,
        }
    )  # fmt: skip


def growth(bench: Bench) -> None:
    """Scoring and one epoch of tuning as depth, width, tokens and gamma double."""
    base = config("llama-2-7b", bench.args.scale)
    depth = max(2, base.num_hidden_layers // 8)
    width, heads = base.hidden_size // 2, base.num_attention_heads // 2
    start = dict(depth=depth, width=width, windows=max(4, bench.args.windows // 4), gamma=0.005)
    doubled = [{**start, key: 2 * start[key]} for key in start]
    for case in (start, *doubled):
        factor = int(case["width"]) // width
        of = config("llama-2-7b", bench.args.scale)
        of.num_hidden_layers, of.hidden_size = int(case["depth"]), int(case["width"])
        of.num_attention_heads = of.num_key_value_heads = heads * factor
        of.intermediate_size = base.intermediate_size // 2 * factor
        for mode, build in (("resident", resident), ("streamed", streamed)):
            model = build(of, bench.device, bench.dtype)
            windows = bench.windows(model, int(case["windows"]))
            bench.args.gamma = case["gamma"]
            chosen = select(bench, model, windows[: bench.args.score_batch])
            score = bench.measured(lambda m=model, w=windows: select(bench, m, w))
            train = bench.measured(
                lambda m=model, w=windows, c=chosen: tune(
                    m, w, c, StepUniform(), objective(bench), settings(bench, epochs=1)
                )
            )
            bench.keep(
                {
                    "row": f"growth-{mode}", **case, "score_seconds": score[0],
                    "score_gb": score[1], "tune_seconds": train[0], "tune_gb": train[1],
                }
            )  # fmt: skip
            del model


ROWS: dict[str, Callable[[Bench], None]] = {
    "score-resident": lambda bench: score_row(bench, "resident"),
    "tune-resident": lambda bench: tune_row(bench, "resident"),
    "run": lambda bench: tune_row(bench, "resident", rescore=True),
    "score-streamed": lambda bench: score_row(bench, "streamed"),
    "tune-streamed": lambda bench: tune_row(bench, "streamed"),
    "score-70b": score_70b,
    "smollm2": smollm2,
    "cpu": cpu,
    "released": released,
    "growth": growth,
}


def main() -> None:
    """Measure the rows asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--output", type=Path, default=Path("scale.jsonl"))
    parser.add_argument("--scale", type=float, default=1.0, help="of depth and width, to try it")
    parser.add_argument("--windows", type=int, default=128)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--score-batch", type=int, default=8)
    parser.add_argument("--tune-batch", type=int, default=4)
    parser.add_argument("--gamma", type=float, default=0.005)
    parser.add_argument("--objective", choices=("cross-entropy", "kl"), default="cross-entropy")
    args = parser.parse_args()
    gamma = args.gamma
    bench = Bench(args)
    for name in args.rows:
        ROWS[name](bench)
        args.gamma = gamma


if __name__ == "__main__":
    main()
