"""How the packed products are best made, on LLaMA-2-7B's linear layers at batch 1, on one GPU.

    python benchmarks/kernels.py [--variants 7 9 11p ...] [--formats "k-means 4-bit" ...]
        [--decode] [--triton] [--output FILE.jsonl]

Compiles everything in parallel, then checks each variant of variants.py against float64, with
poisoned outputs, and times it: microseconds of each kind of layer with each cut (warps of a block,
tiles loaded ahead, blocks per multiprocessor), distinct weights in every launch; then all 128
launches of a token in one CUDA graph with the best cuts. `--decode` adds whole decoding of k-means
4-bit, `--triton` rival kernels in Triton. A line of JSON per number. `npft bench` has the rivals.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from checks import Failure, check
from compiling import SIZES, compile_all
from variants import VARIANTS, Variant, cuts, multiply, wanted

from npft.bench import measure
from npft.bench.shapes import FORMATS, SHAPES, Format, random_tensors, random_weights
from npft.bench.timing import graph_replays, read_bandwidth
from npft.packed.gemv import Shape
from npft.packed.tensors import PackedTensors

SHAPE = SHAPES["llama-2-7b"]
KNOWN = {form.name: form for form in (*FORMATS, Format("kmeans", 2), Format("uniform", 3))}
DEFAULT = [form.name for form in (*FORMATS, Format("kmeans", 2))]
DECODED = Format("kmeans", 4)
REPLAYS = 11

Best = dict[str, Shape]
"""The best cut by layer."""


@dataclass
class Output:
    """JSON lines, written as they come."""

    path: Path | None
    rows: list[dict[str, Any]] = field(default_factory=list)

    def add(self, **row: Any) -> None:
        """One number and what it is of."""
        self.rows.append(row)
        if self.path:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")


def sweep(
    variant: Variant, form: Format, layers: dict[str, list[PackedTensors]], output: Output
) -> Best:
    """Each kind of layer with each cut, and the best cuts."""
    best = {}
    for name, (out, inner) in SIZES.items():
        x = torch.randn(1, inner, device="cuda").bfloat16()
        y = torch.empty(1, out, device="cuda").bfloat16()
        found = {}
        for cut in cuts(variant, layers[name][0]):

            def work(name: str = name, cut: Shape = cut, x: Any = x, y: Any = y) -> None:
                for weight in layers[name]:
                    multiply(variant, weight, x, y, None, cut)

            found[cut] = graph_replays(work, REPLAYS).median / len(layers[name]) * 1e3
            shape = [cut.warps, cut.depth, cut.blocks]
            output.add(
                what="layer",
                variant=variant.name,
                format=form.name,
                layer=name,
                cut=shape,
                microseconds=found[cut],
            )
        best[name] = min(found, key=found.__getitem__)
        shown = " | ".join(f"{c.warps},{c.depth},{c.blocks}: {t:.2f}" for c, t in found.items())
        print(f"  {variant.name}, {form.name}, {name}: {shown}", flush=True)
    return best


def together(
    product: Callable[[str, PackedTensors, torch.Tensor, torch.Tensor], None],
    label: str,
    form: Format,
    layers: dict[str, list[PackedTensors]],
    output: Output,
    bandwidth: float,
) -> None:
    """All layers of a token in one graph."""
    x = {n: torch.randn(1, inner, device="cuda").bfloat16() for n, (_, inner) in SIZES.items()}
    y = {n: torch.empty(1, out, device="cuda").bfloat16() for n, (out, _) in SIZES.items()}

    def work() -> None:
        for index in range(SHAPE.layers):
            for name in SIZES:
                product(name, layers[name][index], x[name], y[name])

    times = graph_replays(work, 2 * REPLAYS)
    floor = sum(w.nbytes for several in layers.values() for w in several) / bandwidth * 1e3
    output.add(
        what="all",
        variant=label,
        format=form.name,
        milliseconds=times.median,
        least=times.spread[0],
        most=times.spread[1],
        floor_ms=floor,
        of_floor=floor / times.median,
    )


def decode(variant: Variant, best: Best, output: Output, bandwidth: float) -> None:
    """128 tokens of a whole model with this variant's products."""
    kept: list[PackedTensors] = []
    by_size = {size: best[name] for name, size in SIZES.items()}

    def make(rows: int, columns: int) -> Callable[[torch.Tensor, torch.Tensor], None]:
        weight = random_tensors(DECODED, rows, columns)
        kept.append(weight)
        cut = by_size[rows, columns]
        return lambda x, y: multiply(variant, weight, x, y, None, cut)

    weights = random_weights(SHAPE, make, torch.bfloat16)
    size = sum(weight.nbytes for weight in kept)
    (line,) = measure.decoding(variant.name, weights, size, [128], bandwidth, 4)
    output.add(**line.as_row(), format=DECODED.name)
    print(f"  {variant.name}: {line.milliseconds:.3f} ms/token, {line.fraction:.1%}", flush=True)


def one_format(
    form: Format, variants: list[Variant], options_: Any, output: Output, bandwidth: float
) -> None:
    """Everything of one format."""
    layers = {
        name: [random_tensors(form, *size) for _ in range(SHAPE.layers)]
        for name, size in SIZES.items()
    }
    bests = {}
    for variant in variants:
        if not wanted(variant, form):
            continue
        tried = {name: cuts(variant, layers[name][0]) for name in ("o", "down")}
        try:
            for name, several in tried.items():
                for cut in several:
                    error = check(variant, form, layers[name][:2], cut)
                    output.add(
                        what="check",
                        variant=variant.name,
                        format=form.name,
                        layer=name,
                        cut=[cut.warps, cut.depth, cut.blocks],
                        error=error,
                    )
        except Failure as failure:  # the others can still be measured
            print(f"  WRONG {variant.name}, {form.name}: {failure}", flush=True)
            output.add(what="wrong", variant=variant.name, format=form.name, why=str(failure))
            continue
        best = bests[variant] = sweep(variant, form, layers, output)

        def product(name: str, *given: Any, variant: Any = variant, best: Best = best) -> None:
            weight, x, y = given
            multiply(variant, weight, x, y, None, best[name])

        together(product, variant.name, form, layers, output, bandwidth)
    if options_.triton:
        import triton_gemv

        triton_gemv.measure(form, SIZES, layers, output, bandwidth, together)
    del layers
    if options_.decode and form == DECODED:
        for variant, best in bests.items():
            decode(variant, best, output, bandwidth)


def table(output: Output) -> None:
    """What matters, last."""
    rows = [row for row in output.rows if row["what"] == "all"]
    names = list(dict.fromkeys(row["format"] for row in rows))
    print("\nmilliseconds for all linear layers (share of the floor)")
    for label in dict.fromkeys(row["variant"] for row in rows):
        found = {row["format"]: row for row in rows if row["variant"] == label}
        cells = [
            f"{n}: {found[n]['milliseconds']:.3f} ({found[n]['of_floor']:.0%})"
            for n in names
            if n in found
        ]
        print(f"{label:26} {' | '.join(cells)}")
    for row in output.rows:
        if row["what"] == "decode":
            print(f"decode {row['variant']}: {row['milliseconds']:.3f} ({row['fraction']:.1%})")
        if row["what"] == "wrong":
            print(f"WRONG {row['variant']} {row['format']}: {row['why']}")


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--variants", nargs="*", default=["7"], choices=list(VARIANTS))
    parser.add_argument("--formats", nargs="*", default=DEFAULT, choices=list(KNOWN))
    parser.add_argument("--decode", action="store_true")
    parser.add_argument("--triton", action="store_true")
    parser.add_argument("--output", type=Path)
    options_ = parser.parse_args()
    variants = [VARIANTS[name] for name in options_.variants]
    forms = [KNOWN[name] for name in options_.formats]
    output = Output(options_.output)
    compile_all(variants, forms)
    bandwidth = read_bandwidth()
    output.add(what="gpu", name=torch.cuda.get_device_name(), read_bandwidth=bandwidth)
    print(f"{torch.cuda.get_device_name()}, reads {bandwidth / 1e12:.3f} TB/s", flush=True)
    start = time.perf_counter()
    for form in forms:
        one_format(form, variants, options_, output, bandwidth)
        print(f"{form.name} done at {time.perf_counter() - start:.0f} s", flush=True)
    table(output)
    sys.exit(any(row["what"] == "wrong" for row in output.rows))


if __name__ == "__main__":
    main()
