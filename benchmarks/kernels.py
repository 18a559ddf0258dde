"""How packed products are best cut, on LLaMA-2-7B's linear layers at batch 1, on one GPU.

    python benchmarks/kernels.py [--formats "k-means 4-bit" ...] [--output FILE.jsonl]

Checks each format against float64, with poisoned outputs, then times it: microseconds of each kind
of layer with each cut (warps of a block, tiles loaded ahead, blocks per multiprocessor), distinct
weights in every launch; then all 128 launches of a token in one CUDA graph, with the best cuts and
with those that the package chooses. `npft bench --shape llama-2-7b` has whole decoding and rivals.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from kernel_checks import CUTS, check, check_small

from npft.bench.shapes import FORMATS, SHAPES, Format, matrices, random_tensors
from npft.bench.timing import graph_replays, read_bandwidth
from npft.packed import gemv, nvrtc
from npft.packed.gemv import Shape
from npft.packed.tensors import PackedTensors

SHAPE = SHAPES["llama-2-7b"]
SIZES = matrices(SHAPE)
KNOWN = {form.name: form for form in (*FORMATS, Format("kmeans", 2), Format("uniform", 3))}
REPLAYS = 11

Layers = dict[str, list[PackedTensors]]


@dataclass
class Output:
    """JSON lines, written as they come."""

    path: Path | None

    def add(self, **row: Any) -> None:
        """One number and what it is of."""
        if self.path:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")


def compile_all(layers: Layers) -> None:
    """Fill NVRTC's cache, on all cores."""
    major, minor = torch.cuda.get_device_capability()
    x = {
        name: torch.empty(1, inner, device="cuda").bfloat16() for name, (_, inner) in SIZES.items()
    }
    jobs = {gemv.options(layers[name][0], x[name], cut) for name in SIZES for cut in CUTS}
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda job: nvrtc.image("gemv.cu", job, f"sm_{major}{minor}"), jobs))


def sweep(form: Format, layers: Layers, output: Output) -> dict[str, Shape]:
    """Each kind of layer with each cut, and the best cuts."""
    best = {}
    for name, (out, inner) in SIZES.items():
        x = torch.randn(1, inner, device="cuda").bfloat16()
        y = torch.empty(1, out, device="cuda").bfloat16()
        found = {}
        for cut in CUTS:

            def work(name: str = name, cut: Shape = cut, x: Any = x, y: Any = y) -> None:
                for weight in layers[name]:
                    gemv.multiply(weight, x, y, None, cut)

            found[cut] = graph_replays(work, REPLAYS).median / len(layers[name]) * 1e3
            shape = [cut.warps, cut.depth, cut.blocks]
            row = {"format": form.name, "layer": name, "cut": shape}
            output.add(what="layer", **row, microseconds=found[cut])
        best[name] = min(found, key=found.__getitem__)
        shown = " | ".join(f"{c.warps},{c.depth},{c.blocks}: {t:.2f}" for c, t in found.items())
        print(f"  {name}: {shown}", flush=True)
    return best


def together(
    label: str,
    cut_of: Callable[[str], Shape],
    form: Format,
    layers: Layers,
    output: Output,
    bandwidth: float,
) -> None:
    """All layers of a token in one graph."""
    x = {n: torch.randn(1, inner, device="cuda").bfloat16() for n, (_, inner) in SIZES.items()}
    y = {n: torch.empty(1, out, device="cuda").bfloat16() for n, (out, _) in SIZES.items()}

    def work() -> None:
        for index in range(SHAPE.layers):
            for name in SIZES:
                gemv.multiply(layers[name][index], x[name], y[name], None, cut_of(name))

    times = graph_replays(work, 2 * REPLAYS)
    floor = sum(w.nbytes for several in layers.values() for w in several) / bandwidth * 1e3
    output.add(
        what="all",
        cuts=label,
        format=form.name,
        milliseconds=times.median,
        least=times.spread[0],
        most=times.spread[1],
        floor_ms=floor,
        of_floor=floor / times.median,
    )
    print(f"  all, {label}: {times.median:.3f} ms, {floor / times.median:.0%} of the floor")


def one_format(form: Format, output: Output, bandwidth: float) -> None:
    """Everything of one format."""
    print(form.name, flush=True)
    layers = {
        name: [random_tensors(form, *size) for _ in range(SHAPE.layers)]
        for name, size in SIZES.items()
    }
    compile_all(layers)
    errors = [check_small(form, CUTS[0])]
    errors += [check(layers[name][:2], cut) for name in ("o", "down") for cut in CUTS]
    output.add(what="check", format=form.name, error=max(errors))
    print(f"  errors up to {max(errors):.1e}", flush=True)
    best = sweep(form, layers, output)
    together("best cuts", best.__getitem__, form, layers, output, bandwidth)
    chosen = {name: gemv.shape_for(layers[name][0]) for name in SIZES}
    together("the package's cuts", chosen.__getitem__, form, layers, output, bandwidth)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--formats", nargs="*", default=list(KNOWN), choices=list(KNOWN))
    parser.add_argument("--output", type=Path)
    chosen = parser.parse_args()
    output, bandwidth = Output(chosen.output), read_bandwidth()
    output.add(what="gpu", name=torch.cuda.get_device_name(), read_bandwidth=bandwidth)
    print(f"{torch.cuda.get_device_name()}, reads {bandwidth / 1e12:.3f} TB/s", flush=True)
    for name in chosen.formats:
        one_format(KNOWN[name], output, bandwidth)


if __name__ == "__main__":
    main()
