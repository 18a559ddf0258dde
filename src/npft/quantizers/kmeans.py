"""SqueezeLLM's non-uniform quantizer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from npft.artifacts import CodebookWeight, PackedWeight, SparsePart
from npft.contracts import Quantizer
from npft.errors import NpftError
from npft.quantizers.kmeans_1d import weighted_kmeans_1d
from npft.quantizers.rtn import half


class KMeans(Quantizer):
    r"""Sensitivity-weighted 1-D k-means per output channel (SqueezeLLM, arXiv 2306.07629).

    Minimises :math:`\sum_j F_{ij} (w_{ij} - c_{i,q(j)})^2` for each row i, with the Fisher
    sensitivities F of the model being quantized (its section 4.1).

    With a share above 0, dense-and-sparse (its section 4.2): these weights of each matrix are left
    out when the codebooks are fitted, and a sparse float16 matrix holds what their nearest entries
    lack, so that they keep their values. The most sensitive are taken first, and the largest of
    the others after them.
    """

    name: ClassVar[str] = "kmeans"
    needs_sensitivity: ClassVar[bool] = True
    keeps_layers: ClassVar[bool] = True

    sparse_sensitivity: float = Field(
        0.0, ge=0, le=0.1, description="share of each matrix kept in float, the most sensitive"
    )
    sparse_magnitude: float = Field(
        0.0, ge=0, le=0.1, description="share of each matrix kept in float, the largest"
    )

    @property
    def variant(self) -> str:
        shares = {"s": self.sparse_sensitivity, "m": self.sparse_magnitude}
        return "-".join(f"{letter}{100 * share:g}%" for letter, share in shares.items() if share)

    def quantize_weight(self, weight: Tensor, sensitivity: Tensor | None) -> PackedWeight:
        weights = torch.ones_like(weight) if sensitivity is None else sensitivity
        kept = self._kept(weight, weights)
        try:
            fitted = weights.flatten().index_fill(0, kept, 0.0).view_as(weight)
            codebook, codes = weighted_kmeans_1d(weight, fitted, 2**self.bits)
        except ValueError as error:
            raise NpftError(
                f"a matrix and its sensitivities cannot be clustered: {error}"
            ) from error
        dense = CodebookWeight(codes, half(codebook), self.bits)
        if not self.variant:
            return dense
        lacking = (weight.float() - dense.dequantize()).take(kept)
        return replace(dense, sparse=SparsePart.at(kept, half(lacking), dense.shape))

    def _kept(self, weight: Tensor, sensitivity: Tensor) -> Tensor:
        """Sorted flat positions that keep their values."""
        first, second = (
            round(share * weight.numel())
            for share in (self.sparse_sensitivity, self.sparse_magnitude)
        )
        sensitive = sensitivity.flatten().topk(first).indices
        sizes = weight.flatten().abs().float().index_fill(0, sensitive, -1.0)
        return torch.cat((sensitive, sizes.topk(second).indices)).sort().values

    def follow(
        self, weight: Tensor, sensitivity: Tensor | None
    ) -> Callable[[Tensor], PackedWeight]:
        """Search the codebook once; afterwards one step of Lloyd's algorithm each time.

        The weights are assigned to the nearest entries of the last codebook, whose entries then
        become the weighted means of their members. A codebook that stood still would let tuning
        fit entries that no later search finds.
        """
        if self.variant:
            return super().follow(weight, sensitivity)
        searched = self.quantize_weight(weight, sensitivity)
        return Following(searched.tables()["codebook"].float(), sensitivity, self.bits)


class Following:
    """The codebook of a matrix that moves.

    Attributes:
        codebook: ``(out, 2**bits)`` float32, ascending: all that later calls depend on beside
            the sensitivities.
    """

    def __init__(self, codebook: Tensor, sensitivity: Tensor | None, bits: int) -> None:
        self.codebook = codebook
        self._sensitivity = sensitivity
        self._bits = bits

    def __call__(self, moved: Tensor) -> PackedWeight:
        """Quantize the matrix ``(out, in)`` where it is now."""
        moved = moved.float().contiguous()
        weights = torch.ones_like(moved) if self._sensitivity is None else self._sensitivity
        codes = torch.searchsorted(self.codebook.unfold(1, 2, 1).mean(2), moved)
        self.codebook = _means(moved, weights, codes, self.codebook)
        # Not looked at whether it fits: the host would wait for the device. It did at first.
        return CodebookWeight(codes.to(torch.uint8), self.codebook.half(), self._bits)


def _means(values: Tensor, weights: Tensor, codes: Tensor, empty: Tensor) -> Tensor:
    """Weighted means ``(rows, clusters)`` of each row's clusters; ``empty`` for those of no weight.

    Clusters are intervals in ascending order, so their means ascend as well, up to rounding.
    """
    mass = torch.zeros_like(empty).scatter_add_(1, codes, weights)
    moment = torch.zeros_like(empty).scatter_add_(1, codes, weights * values)
    return torch.where(mass > 0, moment / mass, empty).cummax(1).values
