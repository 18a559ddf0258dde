"""Scores to outliers: the top gamma of each matrix, as positions one can shake and restore."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction

import torch
from torch import Tensor

from npft.artifacts import LinearLayer, Outliers
from npft.errors import NpftError


def check_gamma(gamma: float) -> None:
    """Raises NpftError unless ``0 < gamma <= 1``."""
    if not 0 < gamma <= 1:
        raise NpftError(
            f"gamma={gamma} is outside (0, 1]: give the share of weights to perturb, such as 0.005"
        )


def count(gamma: float, numel: int) -> int:
    """``floor(gamma * numel)`` in exact decimal arithmetic (0.29 of 100 is 29, not 28)."""
    return int(Fraction(str(gamma)) * numel)


def check_selects(gamma: float, layers: Iterable[LinearLayer]) -> None:
    """Raises NpftError where gamma is so small that no layer has a single outlier."""
    if not any(count(gamma, layer.out_features * layer.in_features) for layer in layers):
        raise NpftError(f"gamma={gamma} selects no weight in any layer: give a larger share")


def top_positions(sensitivity: Tensor, gamma: float) -> Outliers:
    """The ``floor(gamma * numel)`` most sensitive positions of one matrix.

    Ties at the threshold go to the lowest positions, so that the choice never depends on the
    device or on the sorting algorithm.

    Args:
        sensitivity: ``(out, in)``, non-negative.
        gamma: share of the positions, in (0, 1].

    Raises:
        NpftError: gamma is out of range, or a score is NaN or infinite.
    """
    check_gamma(gamma)
    shape = (sensitivity.shape[0], sensitivity.shape[1])
    scores = sensitivity.flatten()
    if not bool(torch.isfinite(scores).all()):
        raise NpftError("a sensitivity is NaN or infinite: check the model and the scorer")
    wanted = count(gamma, scores.numel())
    if wanted == scores.numel():
        return Outliers(shape, None)
    if wanted == 0:
        return Outliers(shape, torch.empty(0, dtype=torch.int64, device=scores.device))
    threshold = torch.topk(scores, wanted, sorted=False).values.min()
    above = torch.nonzero(scores > threshold).flatten()
    ties = torch.nonzero(scores == threshold).flatten()[: wanted - above.numel()]
    return Outliers(shape, torch.cat([above, ties]).sort().values)


def select(scores: Iterable[tuple[str, Tensor]], gamma: float) -> dict[str, Outliers]:
    """Outliers of every layer from a scorer's stream, holding one matrix of scores at a time.

    Raises:
        NpftError: gamma is out of range, or a layer's scores are not finite (it is named).
    """
    check_gamma(gamma)
    chosen: dict[str, Outliers] = {}
    for name, sensitivity in scores:
        try:
            chosen[name] = top_positions(sensitivity, gamma)
        except NpftError as error:
            raise NpftError(f"layer {name}: {error}") from error
        del sensitivity  # before the scorer makes the next
    return chosen
