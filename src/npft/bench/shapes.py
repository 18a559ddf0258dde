"""Random packed weights of a model's shape, made on the GPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from npft.errors import NpftError
from npft.packed import gemv, layout, reference
from npft.packed.decoder import Block, Fused, Product, Shape, Weights, dense_product, packed_product
from npft.packed.tensors import PackedTensors

SHAPES = {
    "llama-2-7b": Shape(32, 4096, 11008, 32, 32, 128, 32000),
    "tiny": Shape(2, 256, 512, 8, 4, 32, 1000),
}
"""Models by name; ``tiny`` is for trying things out."""


def shape_named(name: str) -> Shape:
    """The shape of that name.

    Raises:
        NpftError: there is none.
    """
    if name not in SHAPES:
        raise NpftError(f"shape {name!r} is unknown: there is {', '.join(SHAPES)}")
    return SHAPES[name]


@dataclass(frozen=True)
class Format:
    """How weights are kept: ``kind`` is ``kmeans`` or ``uniform``."""

    kind: str
    bits: int
    group_size: int = 0
    sparse: float = 0.0

    @property
    def name(self) -> str:
        group = f", groups of {self.group_size}" if self.group_size else ""
        outliers = f" + {self.sparse:.2%} outliers" if self.sparse else ""
        kind = "k-means" if self.kind == "kmeans" else self.kind
        return f"{kind} {self.bits}-bit{group}{outliers}"


FORMATS = (
    Format("uniform", 4),
    Format("uniform", 4, 128),
    Format("kmeans", 4),
    Format("kmeans", 3),
    Format("kmeans", 4, sparse=0.0005),
    Format("kmeans", 4, sparse=0.005),
)


def matrices(shape: Shape) -> dict[str, tuple[int, int]]:
    """The four products of a block, ``(out, in)``: layers of one input are one product."""
    queries, keys = shape.heads * shape.head, shape.kv_heads * shape.head
    return {
        "qkv": (queries + 2 * keys, shape.width),
        "o": (shape.width, queries),
        "gate_up": (2 * shape.mlp, shape.width),
        "down": (shape.width, shape.mlp),
    }


def random_tensors(form: Format, rows: int, columns: int) -> PackedTensors:
    """A random matrix with entries of about ``columns ** -0.5``, on the current GPU."""
    size = columns**-0.5
    blocks, units = -(-rows // layout.ROWS), -(-columns // layout.UNIT)
    padded, high = blocks * layout.ROWS, 2**31 - 1
    tiles = torch.randint(
        -high, high, (blocks, units, form.bits, 32, 4), dtype=torch.int32, device="cuda"
    )
    if form.kind == "uniform":
        groups = -(-columns // form.group_size) if form.group_size else 1
        scale = (torch.rand(groups, padded, device="cuda") + 0.5) * size / 2**form.bits
        zero = torch.randint(2**form.bits, (groups, padded), device="cuda").half()
        made = PackedTensors(rows, columns, form.bits, tiles, scale.half(), zero, form.group_size)
    else:
        # Values that bf16 holds exactly, so that the dequantized model is the same model.
        table = (torch.randn(padded, 2**form.bits, device="cuda") * size).bfloat16().half()
        made = PackedTensors(rows, columns, form.bits, tiles, table.sort(1).values)
    return _with_outliers(made, form.sparse, 4 * size) if form.sparse else made


def _with_outliers(weight: PackedTensors, share: float, size: float) -> PackedTensors:
    """As many outliers in a row as chance would have it, at random columns."""
    rows, columns = weight.padded_rows, weight.columns
    mean = torch.full((rows,), share * columns, device="cuda")
    counts = torch.poisson(mean).int()
    offsets = torch.nn.functional.pad(counts.cumsum(0), (1, 0)).int()
    total = int(offsets[-1])
    order = torch.repeat_interleave(torch.arange(rows, device="cuda"), counts, output_size=total)
    places = torch.randint(columns, (total,), device="cuda")
    places = (order * columns + places).sort().values % columns
    values = (torch.randn(total, device="cuda") * size).half().view(torch.int16).int()
    return replace(weight, row_offsets=offsets, entries=places.int() | (values << 16))


def random_weights(
    shape: Shape, product: Callable[[int, int], Product], dtype: torch.dtype
) -> Weights:
    """A random Llama-like network whose products ``product(rows, columns)`` makes."""
    sizes = matrices(shape)
    queries, keys = shape.heads * shape.head, shape.kv_heads * shape.head

    def vector() -> Tensor:
        return torch.ones(shape.width, dtype=dtype, device="cuda")

    def block() -> Block:
        return Block(
            (vector(), vector()),
            Fused(product(*sizes["qkv"]), sizes["qkv"][0], (0, queries, queries + keys)),
            product(*sizes["o"]),
            Fused(product(*sizes["gate_up"]), sizes["gate_up"][0], (0, shape.mlp)),
            product(*sizes["down"]),
        )

    table = (shape.vocabulary, shape.width)
    exponents = torch.arange(0, shape.head, 2, device="cuda").float() / shape.head
    return Weights(
        shape,
        torch.randn(table, dtype=dtype, device="cuda"),
        [block() for _ in range(shape.layers)],
        vector(),
        torch.randn(table, dtype=dtype, device="cuda") * shape.width**-0.5,
        1e4**-exponents,
    )


def packed_maker(form: Format, kept: list[PackedTensors]) -> Callable[[int, int], Product]:
    """Makes products with random packed matrices, which are also put into ``kept``."""

    def make(rows: int, columns: int) -> Product:
        kept.append(random_tensors(form, rows, columns))
        return packed_product(kept[-1])

    return make


def dequantized(weights: Weights, packed: list[PackedTensors], dtype: torch.dtype) -> Weights:
    """The same network with the matrices ``packed`` as float ones."""
    remaining = iter(packed)

    def whole() -> Product:
        weight = next(remaining)
        matrix = gemv.dequantize(weight, dtype)
        reference.add_sparse(weight, matrix)
        return dense_product(matrix)

    blocks = [
        replace(
            block,
            qkv=replace(block.qkv, product=whole()),
            o=whole(),
            gate_up=replace(block.gate_up, product=whole()),
            down=whole(),
        )
        for block in weights.blocks
    ]
    return replace(weights, blocks=blocks)
