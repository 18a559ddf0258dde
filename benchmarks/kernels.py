"""Packed kernels on LLaMA-2-7B's linear layers at batch 1: every variant, shape by shape.

    python benchmarks/kernels.py [--kinds kmeans-4 ...] [--output rows.json]

Prints, per kind of weight and shape, the time of each way to cut the work (warps per block, tiles
loaded ahead), then the time of all 32 layers in one CUDA graph with the best ways, beside the
bandwidth floor. `npft bench` compares with rivals; this is what the kernels are tuned with.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from npft.packed import gemv, layout
from npft.packed.gemv import Shape
from npft.packed.tensors import PackedTensors

SHAPES = {"qkv": (12288, 4096), "o": (4096, 4096), "gate_up": (22016, 4096), "down": (4096, 11008)}
KINDS = ("kmeans-4", "kmeans-3", "kmeans-2", "uniform-4", "uniform-4-g128", "kmeans-4-sparse")
LAYERS = 32
VARIANTS = [("best", None), ("best no overlap", None)]


def random_tensors(kind: str, rows: int, columns: int) -> PackedTensors:
    name, bits, *rest = kind.split("-")
    width = int(bits)
    blocks, units = -(-rows // layout.ROWS), -(-columns // layout.UNIT)
    high = 2**31 - 1
    tiles = torch.randint(-high, high, (blocks, units, width, 32, 4), dtype=torch.int32, device="cuda")
    padded = blocks * layout.ROWS
    if name == "kmeans":
        table = torch.randn(padded, 2**width, device="cuda").half()
        offsets = entries = None
        if rest:
            each = round(0.005 * columns)
            offsets = torch.arange(0, padded * each + 1, each, dtype=torch.int32, device="cuda")
            where = torch.randint(columns, (padded, each), device="cuda").sort().values
            values = torch.randn(padded, each, device="cuda").half().view(torch.int16).int()
            entries = where.int() | (values << 16)
        return PackedTensors(
            rows, columns, width, tiles, table, row_offsets=offsets, entries=entries
        )
    group = int(rest[0][1:]) if rest else 0
    groups = columns // group if group else 1
    scale = torch.rand(groups, padded, device="cuda").half()
    zero = torch.randint(2**width, (groups, padded), device="cuda").half() + 1024
    return PackedTensors(rows, columns, width, tiles, scale, zero, group)


def dense(weight: PackedTensors) -> torch.Tensor:
    order = layout.PAIRS if weight.zero is None else layout.HALVES
    codes = layout.unpack(weight.tiles, order, weight.rows, weight.columns).long()
    if weight.zero is None:
        whole = torch.gather(weight.table[: weight.rows].float(), 1, codes)
        if weight.row_offsets is not None:
            counts = weight.row_offsets.diff()[: weight.rows].long()
            rows = torch.repeat_interleave(torch.arange(weight.rows, device="cuda"), counts)
            entries = weight.entries.flatten()[: len(rows)]
            values = (entries >> 16).to(torch.int16).view(torch.half).float()
            whole.index_put_((rows, (entries & 0xFFFF).long()), values, accumulate=True)
        return whole
    size = weight.group_size or weight.columns
    centred = codes.view(weight.rows, -1, size) - (weight.zero[:, : weight.rows].T.float() - 1024)[..., None]
    return (centred * weight.table[:, : weight.rows].T.float()[..., None]).flatten(1)


def timed(work: Callable[[], None], repeats: int = 15) -> list[float]:
    """Milliseconds of each replay of a CUDA graph of ``work``."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 3)]
    for mark in marks:
        graph.replay()
        mark.record()
    torch.cuda.synchronize()
    return [a.elapsed_time(b) for a, b in zip(marks[2:], marks[3:], strict=False)]


def check(kind: str, rows: int, columns: int, batch: int, dtype: torch.dtype) -> float:
    weight = random_tensors(kind, rows, columns)
    x = torch.randn(batch, columns, device="cuda").to(dtype)
    y = torch.full((batch, rows), float("nan"), dtype=dtype, device="cuda")
    gemv.multiply(weight, x, y)
    exact = x.double() @ dense(weight).double().T
    return ((y.double() - exact).norm() / exact.norm()).item()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kinds", nargs="*", default=KINDS)
    parser.add_argument("--shapes", nargs="*", default=["8,1,1", "8,2,1", "16,1,1", "16,2,1"])
    parser.add_argument("--output", type=Path, default=Path("kernels.json"))
    options = parser.parse_args()
    start = time.time()
    a, b = (torch.empty(2**30, dtype=torch.uint8, device="cuda").random_() for _ in range(2))
    copy = statistics.median(timed(lambda: b.copy_(a)))
    print(f"copy {2 * a.nbytes / copy / 1e9:.3f} TB/s", flush=True)
    del a, b
    rows = []
    for kind in options.kinds:
        for batch, dtype in ((1, torch.bfloat16), (3, torch.float16), (16, torch.bfloat16)):
            error = check(kind, 1000, 4096 if "g" in kind.split("-")[-1] else 1100, batch, dtype)
            print(f"{kind} batch {batch} {dtype}: error {error:.1e}", flush=True)
        best = {}
        for name, (out, inner) in SHAPES.items():
            first = random_tensors(kind, out, inner)
            copies = [first] + [random_tensors(kind, out, inner) for _ in range(int(3e8 // first.nbytes))]
            x = torch.randn(1, inner, device="cuda").bfloat16()
            y = torch.empty(1, out, device="cuda").bfloat16()
            for shape in (Shape(*map(int, s.split(","))) for s in options.shapes):
                times = timed(lambda: [gemv.multiply(c, x, y, None, shape) for c in copies])  # noqa: B023
                each = statistics.median(times) / len(copies) * 1e3
                rows.append(dict(kind=kind, layer=name, shape=[shape.warps, shape.depth, shape.blocks],
                                 microseconds=each, tb_per_s=first.nbytes / each / 1e6))
                print(f"{kind} {name} {shape}: {each:.2f} us, {first.nbytes / each / 1e6:.2f} TB/s", flush=True)
                if name not in best or each < best[name][0]:
                    best[name] = (each, shape)
        del copies, first
        layers = [(name, random_tensors(kind, *SHAPES[name])) for _ in range(LAYERS) for name in SHAPES]
        inputs = {n: torch.randn(1, SHAPES[n][1], device="cuda").bfloat16() for n in SHAPES}
        outputs = {n: torch.empty(1, SHAPES[n][0], device="cuda").bfloat16() for n in SHAPES}
        for label, pick in VARIANTS:
            times = timed(lambda: [gemv.multiply(w, inputs[n], outputs[n], None, best[n][1] if pick is None else Shape(*pick[n]), overlap="no overlap" not in label) for n, w in layers])  # noqa: B023
            size, middle = sum(w.nbytes for _, w in layers), statistics.median(times)
            rows.append(dict(kind=kind, layer="all", variant=label, milliseconds=middle,
                             spread=[min(times), max(times)], bytes=size))
            print(f"== {kind} all 32 layers, {label}: {middle:.3f} ms ({min(times):.3f}-{max(times):.3f}), "
                  f"{size / middle / 1e9:.2f} TB/s [{time.time() - start:.0f} s]", flush=True)
        del layers
        options.output.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
