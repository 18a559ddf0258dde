"""SqueezeLLM's non-uniform quantizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from npft.artifacts import CodebookWeight, PackedWeight
from npft.contracts import Quantizer
from npft.errors import NpftError
from npft.quantizers.kmeans_1d import weighted_kmeans_1d
from npft.quantizers.rtn import half


class KMeans(Quantizer):
    r"""Sensitivity-weighted 1-D k-means per output channel (SqueezeLLM, dense only).

    Minimises :math:`\sum_j F_{ij} (w_{ij} - c_{i,q(j)})^2` for each row i, with the Fisher
    sensitivities F of the model being quantized (arXiv 2306.07629, section 4.1).
    """

    name: ClassVar[str] = "kmeans"
    needs_sensitivity: ClassVar[bool] = True

    def quantize_weight(self, weight: Tensor, sensitivity: Tensor | None) -> PackedWeight:
        weights = torch.ones_like(weight) if sensitivity is None else sensitivity
        try:
            codebook, codes = weighted_kmeans_1d(weight, weights, 2**self.bits)
        except ValueError as error:
            raise NpftError(
                f"a matrix and its sensitivities cannot be clustered: {error}"
            ) from error
        return CodebookWeight(codes, half(codebook), self.bits)

    def follow(
        self, weight: Tensor, sensitivity: Tensor | None
    ) -> Callable[[Tensor], PackedWeight]:
        """Search the codebook once; afterwards one step of Lloyd's algorithm each time.

        The weights are assigned to the nearest entries of the last codebook, whose entries then
        become the weighted means of their members. A codebook that stood still would let tuning
        fit entries that no later search finds.
        """
        searched = self.quantize_weight(weight, sensitivity)
        codebook = searched.tables()["codebook"].float()
        weights = torch.ones_like(weight) if sensitivity is None else sensitivity

        def assign(moved: Tensor) -> PackedWeight:
            nonlocal codebook
            moved = moved.float().contiguous()
            codes = torch.searchsorted(codebook.unfold(1, 2, 1).mean(2), moved)
            codebook = _means(moved, weights, codes, codebook)
            return CodebookWeight(codes.to(torch.uint8), half(codebook), self.bits)

        return assign


def _means(values: Tensor, weights: Tensor, codes: Tensor, empty: Tensor) -> Tensor:
    """Weighted means ``(rows, clusters)`` of each row's clusters; ``empty`` for those of no weight.

    Clusters are intervals in ascending order, so their means ascend as well, up to rounding.
    """
    mass = torch.zeros_like(empty).scatter_add_(1, codes, weights)
    moment = torch.zeros_like(empty).scatter_add_(1, codes, weights * values)
    return torch.where(mass > 0, moment / mass, empty).cummax(1).values
