"""Scores to outliers: the top gamma of each matrix or of the model, as positions to shake."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from typing import Literal

import torch
from torch import Tensor

from npft.artifacts import LinearLayer, Outliers
from npft.errors import NpftError

Scope = Literal["matrix", "model"]
"""Where the top gamma is taken: in each matrix, or across the whole model."""


def check_gamma(gamma: float) -> None:
    """Raises NpftError unless ``0 < gamma <= 1``."""
    if not 0 < gamma <= 1:
        raise NpftError(
            f"gamma={gamma} is outside (0, 1]: give the share of weights to perturb, such as 0.005"
        )


def count(gamma: float, numel: int) -> int:
    """``floor(gamma * numel)`` in exact decimal arithmetic (0.29 of 100 is 29, not 28)."""
    return int(Fraction(str(gamma)) * numel)


def check_selects(gamma: float, layers: Iterable[LinearLayer], scope: Scope = "matrix") -> None:
    """Raises NpftError where gamma is so small that no layer has a single outlier."""
    sizes = [layer.out_features * layer.in_features for layer in layers]
    if scope == "model":
        sizes = [sum(sizes)]
    if not any(count(gamma, size) for size in sizes):
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
    scores, shape = _finite(sensitivity), _shape(sensitivity)
    wanted = count(gamma, scores.numel())
    if wanted == scores.numel():
        return Outliers(shape, None)
    return Outliers(shape, _top(scores, wanted))


def select(
    scores: Iterable[tuple[str, Tensor]], gamma: float, home: torch.device | None = None
) -> dict[str, Outliers]:
    """Outliers of every layer from a scorer's stream, holding one matrix of scores at a time.

    Args:
        scores: the stream.
        gamma: share of the positions, in (0, 1].
        home: where the positions are kept, by default where their scores are.

    Raises:
        NpftError: gamma is out of range, or a layer's scores are not finite (it is named).
    """
    check_gamma(gamma)
    chosen: dict[str, Outliers] = {}
    for name, sensitivity in scores:
        try:
            found = top_positions(sensitivity, gamma)
            chosen[name] = found.on(home or sensitivity.device)
        except NpftError as error:
            raise NpftError(f"layer {name}: {error}") from error
        del sensitivity  # before the scorer makes the next
    return chosen


def select_across(
    scores: Iterable[tuple[str, Tensor]], gamma: float, total: int
) -> dict[str, Outliers]:
    """The ``floor(gamma * total)`` most sensitive positions of the whole model.

    Beside the matrix at hand only the best so far are held, pruned after every layer. Ties at the
    threshold go to the earlier layer, and in a layer to the lower position. A layer may be left
    with no outlier at all.

    Args:
        scores: a scorer's stream, of ``total`` weights altogether.
        gamma: share of all weights, in (0, 1].
        total: number of weights in the model's linear layers.

    Raises:
        NpftError: gamma is out of range, or a layer's scores are not finite (it is named).
    """
    check_gamma(gamma)
    wanted = count(gamma, total)
    shapes: dict[str, tuple[int, int]] = {}
    best: dict[str, tuple[Tensor, Tensor]] = {}  # positions and their scores, both (k,)
    for name, sensitivity in scores:
        try:
            values = _finite(sensitivity)
        except NpftError as error:
            raise NpftError(f"layer {name}: {error}") from error
        shapes[name] = _shape(sensitivity)
        if wanted < total:  # else everything is chosen and nothing need be held
            positions = _top(values, min(wanted, values.numel()))
            best[name] = (positions, values[positions])
            best = _pruned(best, wanted)
        del sensitivity, values  # before the scorer makes the next
    if wanted == total:
        return {name: Outliers(shape, None) for name, shape in shapes.items()}
    return {
        name: Outliers(shape, None if len(best[name][0]) == shape[0] * shape[1] else best[name][0])
        for name, shape in shapes.items()
    }


def _pruned(
    best: dict[str, tuple[Tensor, Tensor]], wanted: int
) -> dict[str, tuple[Tensor, Tensor]]:
    """The ``wanted`` best of all candidates; earlier layers and lower positions win ties."""
    everything = torch.cat([values for _, values in best.values()])
    if everything.numel() <= wanted:
        return best
    stays = torch.zeros_like(everything, dtype=torch.bool)
    stays[_top(everything, wanted)] = True
    parts = stays.split([len(values) for _, values in best.values()])
    return {
        name: (positions[kept], values[kept])
        for (name, (positions, values)), kept in zip(best.items(), parts, strict=True)
    }


def _finite(sensitivity: Tensor) -> Tensor:
    """The scores row by row, ``(out * in,)``."""
    scores = sensitivity.flatten()
    if not bool(torch.isfinite(scores).all()):
        raise NpftError("a sensitivity is NaN or infinite: check the model and the scorer")
    return scores


def _top(scores: Tensor, wanted: int) -> Tensor:
    """Sorted positions ``(wanted,)`` of the highest scores; ties go to the lowest positions."""
    if wanted == scores.numel():
        return torch.arange(wanted, device=scores.device)
    if wanted == 0:
        return torch.empty(0, dtype=torch.int64, device=scores.device)
    threshold = torch.topk(scores, wanted, sorted=False).values.min()
    above = torch.nonzero(scores > threshold).flatten()
    ties = torch.nonzero(scores == threshold).flatten()[: wanted - above.numel()]
    return torch.cat([above, ties]).sort().values


def _shape(matrix: Tensor) -> tuple[int, int]:
    return (matrix.shape[0], matrix.shape[1])
