"""Candidates for the kernel of packed products, of which the best goes into the package.

They share one source, ``candidates/gemv.cu``, and differ by macros; ``package`` is what npft has.
KERNELS.md says what is expected of each. `kernels.py --variants` checks and times them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from npft.bench.shapes import Format
from npft.packed import gemv, nvrtc
from npft.packed.gemv import Shape
from npft.packed.layout import UNIT
from npft.packed.tensors import PackedTensors

SOURCE = str(Path(__file__).resolve().parent / "candidates" / "gemv.cu")
ROOM = 113 << 10
"""Shared memory of each of two blocks on a Hopper multiprocessor."""

TILE = 512  # bytes per bit
WIDE = (Shape(16, 1, 1), Shape(16, 2, 1))
CUTS = (Shape(8, 1, 3), Shape(8, 2, 2), *WIDE)
RING_CUTS = (Shape(8, 16, 2), Shape(12, 16, 2), Shape(16, 16, 2))
"""Of a ring, ``depth`` is the most tiles of a warp's ring; memory sets the number."""


@dataclass(frozen=True)
class Variant:
    """One candidate: its macros, and whether codes come through rings in shared memory."""

    name: str
    macros: tuple[str, ...] = ()
    ring: bool = False
    uniform_only: bool = False

    @property
    def cuts(self) -> tuple[Shape, ...]:
        """The shapes of launch to try."""
        return RING_CUTS if self.ring else CUTS


PACKAGE = Variant("7 (package)")
VARIANTS = {
    variant.name.split()[0]: variant
    for variant in (
        PACKAGE,
        Variant("8 table before wait"),
        Variant("8s + subnormal codes", ("-DSUBNORMAL",), uniform_only=True),
        Variant("9 + next 2 tiles into L2", ("-DSUBNORMAL", "-DPREFETCH=2")),
        Variant("9a + all tiles into L2", ("-DSUBNORMAL", "-DPREFETCH=16")),
        Variant("10 rings", ("-DSUBNORMAL",), ring=True),
        Variant("10p rings, 4 tiles into L2", ("-DSUBNORMAL", "-DPREFETCH=4"), ring=True),
        Variant("11 rings, late launch", ("-DSUBNORMAL", "-DLATE"), ring=True),
        Variant("11p late, 4 into L2", ("-DSUBNORMAL", "-DLATE", "-DPREFETCH=4"), ring=True),
    )
}


def _fixed_bytes(weight: PackedTensors, batch: int, shape: Shape) -> int:
    """Shared memory of a block without its rings, all of x at once."""
    everything = -(-weight.units // shape.warps) * shape.warps * gemv.vectors(batch) * UNIT * 2
    at_once = (
        gemv.tiles_at_once(weight, batch, shape) * shape.warps * gemv.vectors(batch) * UNIT * 2
    )
    return gemv.shared_bytes(weight, batch, shape) - at_once + everything


def stages(weight: PackedTensors, batch: int, shape: Shape) -> int:
    """Tiles of a warp's ring: 0 where there is no room for two."""
    each = shape.warps * (TILE * weight.bits + 8)
    found = min(shape.depth, (ROOM - _fixed_bytes(weight, batch, shape)) // each)
    return found if found >= 2 else 0


def early_entries(weight: PackedTensors, shape: Shape) -> int:
    """Sparse entries that a lane loads early: those of nearly all rows."""
    assert weight.entries is not None
    mean = len(weight.entries) / weight.padded_rows
    share = 16 if shape.warps >= 16 else 8 if shape.warps >= 8 else 4  # lanes, as in the kernel
    return max(1, min(8, -(-int(mean + 3 * mean**0.5 + 1) // share)))


def options(variant: Variant, weight: PackedTensors, x: Tensor, shape: Shape) -> tuple[str, ...]:
    """The macros of one kernel."""
    chosen = [*gemv.options(weight, x, shape), *variant.macros]
    if weight.zero is None and "-DSUBNORMAL" in chosen:
        chosen.remove("-DSUBNORMAL")
    if weight.row_offsets is not None:
        chosen.append(f"-DEARLY={early_entries(weight, shape)}")
    if variant.ring:
        chosen = [one for one in chosen if not one.startswith(("-DROUND", "-DDEPTH", "-DBLOCKS"))]
        chosen.append(f"-DROUND={-(-weight.units // shape.warps)}")
        chosen.append(f"-DRING={stages(weight, len(x), shape)}")
    return tuple(chosen)


def multiply(
    variant: Variant,
    weight: PackedTensors,
    x: Tensor,
    y: Tensor,
    bias: Tensor | None,
    shape: Shape,
    grid: int | None = None,
) -> None:
    """As :func:`npft.packed.gemv.multiply`, by this variant; ``grid`` is for tests of rings."""
    if variant == PACKAGE:
        gemv.multiply(weight, x, y, bias, shape)
        return
    chosen = options(variant, weight, x, shape)
    kernel = nvrtc.kernel(SOURCE, "gemv", chosen, x.device.index or 0)
    blocks, shared = weight.blocks, gemv.shared_bytes(weight, len(x), shape)
    if variant.ring:
        count = stages(weight, len(x), shape)
        blocks = grid or torch.cuda.get_device_properties(x.device).multi_processor_count
        shared = _fixed_bytes(weight, len(x), shape) + count * shape.warps * (
            TILE * weight.bits + 8
        )
        shared = max(shared, 80 << 10)  # never three blocks on a multiprocessor
    kernel.launch(
        gemv.arguments(weight, x, y, bias), (blocks,), shape.warps * 32, shared, overlap=True
    )


def cuts(variant: Variant, weight: PackedTensors, batch: int = 1) -> list[Shape]:
    """Those that fit."""
    return [cut for cut in variant.cuts if not variant.ring or stages(weight, batch, cut)]


def wanted(variant: Variant, form: Format) -> bool:
    """Whether the variant differs from others in this format."""
    return form.kind == "uniform" or not variant.uniform_only
