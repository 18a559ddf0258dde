"""Linear layers over packed codes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from npft.packed import cpu, gemv, reference
from npft.packed.layout import ROWS
from npft.packed.tensors import PackedTensors, concatenate


class PackedLinear(nn.Module):
    """``y = W x + b`` for a packed W.

    Up to 16 vectors are multiplied by the kernels of :mod:`npft.packed.gemv` on a GPU (fp16 and
    bf16), and up to 4 by :mod:`npft.packed.cpu` on the CPU, with sums in float32; more, and float32
    on a GPU, by dequantizing the matrix and an ordinary product.

    Args:
        weight: the matrix ``(out, in)``.
        bias: ``(out,)``, or None.
    """

    def __init__(self, weight: PackedTensors, bias: Tensor | None = None) -> None:
        super().__init__()
        for name, value in weight.tensors().items():
            self.register_buffer(name, value)
        self.register_buffer("bias", bias)
        self._shape_only = weight.map(lambda tensor: torch.empty_like(tensor, device="meta"))
        self._rows: cpu.RowTensors | None = None

    @property
    def weight(self) -> PackedTensors:
        """The matrix, on the device where the layer is now."""
        names = self._shape_only.tensors()
        return replace(self._shape_only, **{name: getattr(self, name) for name in names})

    @property
    def in_features(self) -> int:
        return self._shape_only.columns

    @property
    def out_features(self) -> int:
        return self._shape_only.rows

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        return self.product(flat).view(*x.shape[:-1], self.out_features)

    def product(self, x: Tensor) -> Tensor:
        """``x (n, in)`` to ``(n, out)``, by whichever way is fastest for n."""
        weight = self.weight
        bias: Any = self.bias
        bias = None if bias is None else bias.to(x.dtype)
        if weight.permutation is not None:
            x = x[:, weight.permutation]
        if gemv.fits(weight, x):
            x = x.contiguous()
            y = torch.empty(len(x), weight.rows, dtype=x.dtype, device=x.device)
            gemv.multiply(weight, x, y, bias)
            return y
        if x.device.type == "cpu" and cpu.available(weight):
            self._rows = self._rows or cpu.rows_of(weight)
            if 0 < len(x) <= cpu.MOST_VECTORS:
                return cpu.multiply(self._rows, x, bias)
            whole = cpu.dense(self._rows, weight.columns).to(x.dtype)
            return nn.functional.linear(x, whole, bias)
        if x.is_cuda and x.dtype in (torch.float16, torch.bfloat16):
            whole = gemv.dequantize(weight, x.dtype)
            reference.add_sparse(weight, whole)
            return nn.functional.linear(x, whole, bias)
        return reference.multiply(weight, x, bias)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Move, but never cast what is packed: tables are float16 whatever the model's dtype."""
        packed = {name: self._buffers.pop(name) for name in self._shape_only.tensors()}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        device = fn(torch.empty(0)).device
        for name, value in packed.items():
            self.register_buffer(name, None if value is None else value.to(device))
        self._rows = None
        return self

    def extra_repr(self) -> str:
        kind = "codebook" if self._shape_only.zero is None else "uniform"
        sparse = "" if self._shape_only.entries is None else ", sparse part"
        return (
            f"{self.in_features}, {self.out_features}, {self._shape_only.bits} bits, {kind}{sparse}"
        )


class SharedInput(PackedLinear):
    """Several packed layers of one input, such as query, key and value, as one product.

    The first of them that is asked for some x computes all; the others take what is theirs.
    """

    def __init__(self, whole: PackedTensors, parts: Sequence[PackedLinear]) -> None:
        sizes = [-(-part.out_features // ROWS) * ROWS for part in parts]
        super().__init__(whole, _joined_bias(parts, sizes))
        starts = [sum(sizes[:i]) for i in range(len(sizes))]
        self.slices = [
            slice(start, start + part.out_features)
            for start, part in zip(starts, parts, strict=True)
        ]
        self._x: Tensor | None = None
        self._y: Tensor | None = None
        self._version = 0
        self._waiting: set[int] = set()

    def take(self, x: Tensor, index: int) -> Tensor:
        """The product of part ``index`` with ``x``."""
        version = 0 if x.is_inference() else x._version  # in-place changes are counted
        if self._x is not x or self._version != version or index not in self._waiting:
            self._y = self.forward(x)
            self._x, self._version = x, version
            self._waiting = set(range(len(self.slices)))
        assert self._y is not None
        y = self._y[..., self.slices[index]]
        self._waiting.discard(index)
        if not self._waiting:
            self._x = self._y = None
        return y


class Part(nn.Module):
    """One of the layers that a :class:`SharedInput` computes together."""

    def __init__(self, shared: SharedInput, index: int, out_features: int) -> None:
        super().__init__()
        if index == 0:
            self.shared = shared  # registered once, so that it moves and counts once
        self._shared = (shared,)
        self._index = index
        self.in_features, self.out_features = shared.in_features, out_features

    def forward(self, x: Tensor) -> Tensor:
        return self._shared[0].take(x, self._index)


def share(parts: Sequence[PackedLinear]) -> list[nn.Module]:
    """Stand-ins for layers of one input that compute them together, or the layers themselves
    where they cannot be joined."""
    whole = concatenate([part.weight for part in parts]) if len(parts) > 1 else None
    if whole is None:
        return list(parts)
    shared = SharedInput(whole, parts)
    return [Part(shared, index, part.out_features) for index, part in enumerate(parts)]


def _joined_bias(parts: Sequence[PackedLinear], sizes: Sequence[int]) -> Tensor | None:
    biases: list[Any] = [part.bias for part in parts]
    if all(bias is None for bias in biases):
        return None
    known = next(bias for bias in biases if bias is not None)
    joined: Tensor = known.new_zeros(sum(sizes))
    start = 0
    for bias, size in zip(biases, sizes, strict=True):
        if bias is not None:
            joined[start : start + len(bias)] = bias
        start += size
    return joined
