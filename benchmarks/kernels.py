"""How each kind of packed product is best cut, on LLaMA-2-7B's linear layers at batch 1.

    python benchmarks/kernels.py [--formats "k-means 4-bit" ...] [--cuts 8,2,3 ...] [--output FILE]

Per format and shape: microseconds with each cut (warps of a block, tiles loaded ahead, blocks that
the registers must leave room for). Then all 32 layers in one graph with the best cuts, with and
without letting launches overlap, and with the default cuts. `npft bench` compares with rivals.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import torch

from npft.bench.shapes import FORMATS, SHAPES, Format, matrices, random_tensors
from npft.bench.timing import graph_replays, read_bandwidth
from npft.packed import gemv
from npft.packed.gemv import Shape

SHAPE = SHAPES["llama-2-7b"]
KNOWN = {form.name: form for form in (*FORMATS, Format("kmeans", 2), Format("uniform", 3))}


def sweep(form: Format, cuts: list[Shape]) -> tuple[list[dict], dict[str, Shape]]:
    """Each shape with each cut: rows, and the best cut by shape."""
    rows, best = [], {}
    for name, (out, inner) in matrices(SHAPE).items():
        first = random_tensors(form, out, inner)
        copies = [
            first,
            *(random_tensors(form, out, inner) for _ in range(int(3e8 // first.nbytes))),
        ]
        x = torch.randn(1, inner, device="cuda").bfloat16()
        y = torch.empty(1, out, device="cuda").bfloat16()
        found = {}
        for cut in cuts:
            times = graph_replays(lambda: [gemv.multiply(c, x, y, None, cut) for c in copies], 9)  # noqa: B023
            found[cut] = times.median / len(copies) * 1e3
            rows.append(
                {
                    "format": form.name,
                    "layer": name,
                    "microseconds": found[cut],
                    "cut": [cut.warps, cut.depth, cut.blocks],
                }
            )
        best[name] = min(found, key=found.__getitem__)
        shown = " | ".join(f"{c.warps},{c.depth},{c.blocks}: {t:.2f}" for c, t in found.items())
        print(f"{form.name} {name}: {shown}", flush=True)
    return rows, best


def together(form: Format, best: dict[str, Shape], bandwidth: float) -> list[dict]:
    """All layers in one graph."""
    sizes = matrices(SHAPE)
    layers = [(n, random_tensors(form, *sizes[n])) for _ in range(SHAPE.layers) for n in sizes]
    x = {n: torch.randn(1, sizes[n][1], device="cuda").bfloat16() for n in sizes}
    y = {n: torch.empty(1, sizes[n][0], device="cuda").bfloat16() for n in sizes}
    rows, size = [], sum(weight.nbytes for _, weight in layers)
    for label in ("best cuts", "best cuts, no overlap", "default cuts"):

        def work(label: str = label) -> None:
            for n, weight in layers:
                cut = None if label == "default cuts" else best[n]
                gemv.multiply(
                    weight, x[n], y[n], None, cut, overlap=label != "best cuts, no overlap"
                )

        middle = statistics.median(graph_replays(work, 15).each)
        rows.append(
            {
                "format": form.name,
                "layer": "all",
                "cut": label,
                "milliseconds": middle,
                "of_floor": size / bandwidth * 1e3 / middle,
            }
        )
        print(
            f"== {form.name}, {label}: {middle:.3f} ms, {rows[-1]['of_floor']:.0%} of floor",
            flush=True,
        )
    return rows


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--formats", nargs="*", default=[form.name for form in FORMATS])
    parser.add_argument("--cuts", nargs="*", default=["8,1,3", "8,2,3", "16,1,1", "16,2,1"])
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    bandwidth = read_bandwidth()
    print(f"read bandwidth {bandwidth / 1e12:.3f} TB/s", flush=True)
    cuts = [Shape(*map(int, cut.split(","))) for cut in options.cuts]
    rows: list[dict] = []
    for name in options.formats:
        found, best = sweep(KNOWN[name], cuts)
        rows += found + together(KNOWN[name], best, bandwidth)
        if options.output:
            options.output.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
