"""What a rival is, and whether its product is right."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor

from npft.bench.shapes import matrices
from npft.bench.timing import Times, captured, graph_replays, runs
from npft.errors import NpftError
from npft.packed.decoder import Product, Shape

GROUP = 128
"""Inputs that share a scale, in the formats that have groups."""

MOST_WRONG = 0.03
"""Relative error of a right product at most: bf16 rounds to 0.004, float16 sums may lose more."""


class Matrix(NamedTuple):
    """A random weight of one rival.

    Attributes:
        multiply: the product, a tensor ``(1, rows)``, with x ``(1, columns)``; written into y
            ``(1, rows)`` where the library can.
        dense: the weight ``(rows, columns)`` as the format's definition has it.
    """

    multiply: Callable[[Tensor, Tensor], Any]
    dense: Callable[[], Tensor]


@dataclass(frozen=True)
class Rival:
    """A library's product with random weights of about ``columns ** -0.5``, on the current GPU.

    Attributes:
        name: in tables.
        module: what the library is imported as.
        bytes_per_weight: that a product must read: codes, and scales and zeros of groups.
        make: a weight with so many rows and columns.
        bytes_per_row: that it must read besides, for what every row has once.
        dtype: of the activations.
        graphed: whether a CUDA graph captures its kernels.
    """

    name: str
    module: str
    bytes_per_weight: float
    make: Callable[[int, int], Matrix]
    bytes_per_row: float = 0.0
    dtype: torch.dtype = torch.bfloat16
    graphed: bool = True

    @property
    def installed(self) -> bool:
        """Whether its library is there, which is not imported to tell."""
        return find_spec(self.module) is not None

    def size(self, shape: Shape) -> float:
        """Bytes of the linear layers of that shape."""
        return shape.layers * sum(
            rows * (columns * self.bytes_per_weight + self.bytes_per_row)
            for rows, columns in matrices(shape).values()
        )

    def product(self, rows: int, columns: int) -> Product:
        """A new random weight's product."""
        multiply = self.make(rows, columns).multiply

        def product(x: Tensor, y: Tensor) -> None:
            multiply(x, y)

        return product

    def times(self, work: Callable[[], object], repeats: int) -> Times:
        """Each of so many repetitions, without Python between its kernels where that can be."""
        return (graph_replays if self.graphed else runs)(work, repeats)


def error(rival: Rival, rows: int, columns: int) -> float:
    """How far a product is from that with the dequantized weight: norm of the difference by norm.

    A captured product is replayed with another x, so that one whose kernels the graph has missed
    counts as wrong.
    """
    matrix = rival.make(rows, columns)
    x = torch.randn(1, columns, device="cuda").to(rival.dtype)
    y, found = x.new_empty(1, rows), x.new_empty(1, rows)

    def work() -> None:
        found.copy_(matrix.multiply(x, y))

    again = captured(work) if rival.graphed else work
    x.normal_()
    found.fill_(torch.nan)
    again()
    wanted = x.double() @ matrix.dense().double().T
    return float((found - wanted).norm() / wanted.norm())


def check(rival: Rival, rows: int, columns: int) -> None:
    """Compare one product with that of the dequantized weight.

    Raises:
        NpftError: they are not the same.
    """
    found = error(rival, rows, columns)
    if not found <= MOST_WRONG:
        raise NpftError(
            f"its product with {rows} x {columns} weights differs by {found:.1e} from that with "
            "the same weights dequantized"
        )
