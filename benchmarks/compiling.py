"""Every kernel that kernels.py will need, compiled beforehand on all cores."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor

import torch
from checks import small_sizes
from variants import PACKAGE, SOURCE, Variant, cuts, options, wanted

from npft.bench.shapes import SHAPES, Format, matrices
from npft.packed import layout, nvrtc
from npft.packed.tensors import PackedTensors

SIZES = matrices(SHAPES["llama-2-7b"])


def outline(form: Format, rows: int, columns: int) -> PackedTensors:
    """As random_tensors makes it, without data: enough to choose macros by."""
    blocks, units = -(-rows // layout.ROWS), -(-columns // layout.UNIT)
    tiles = torch.empty(blocks, units, form.bits, 32, 4, dtype=torch.int32, device="meta")
    table = torch.empty(blocks * layout.ROWS, 2**form.bits, dtype=torch.half, device="meta")
    zero = table if form.kind == "uniform" else None
    made = PackedTensors(rows, columns, form.bits, tiles, table, zero, form.group_size)
    if not form.sparse:
        return made
    entries = torch.empty(int(form.sparse * rows * columns), dtype=torch.int32, device="meta")
    return PackedTensors(**{**made.__dict__, "row_offsets": entries, "entries": entries})


def compile_all(variants: list[Variant], forms: list[Format]) -> None:
    """Fill NVRTC's cache, on all cores."""
    jobs = set()
    for variant, form in itertools.product(variants, forms):
        if not wanted(variant, form):
            continue
        file = "gemv.cu" if variant == PACKAGE else SOURCE
        for rows, columns, batch in [(*size, 1) for size in SIZES.values()] + small_sizes(form):
            weight, x = outline(form, rows, columns), torch.empty(batch, columns).bfloat16()
            several = cuts(variant, weight, batch)
            if rows < 2000:
                several = several[:1]
            jobs |= {(file, options(variant, weight, x, cut)) for cut in several}
    start = time.perf_counter()
    major, minor = torch.cuda.get_device_capability()
    workers, fresh = min(len(jobs), os.cpu_count() or 1), multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, fresh) as pool:
        done = [pool.submit(nvrtc.image, *job, f"sm_{major}{minor}") for job in jobs]
        for one in done:
            one.result()
    print(f"compiled {len(jobs)} kernels in {time.perf_counter() - start:.0f} s", flush=True)
