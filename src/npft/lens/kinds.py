"""Kinds of perturbation, each made to have a given L2 norm.

All take vectors ``(rows, n)``, a matrix of weights as one row or activations with one row per
token, and give float32 perturbations of them. Intensity is the norm of a row's perturbation over
the norm of the row. Formulas and intensities are our choice: the paper's are not known to us.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol

import torch
from torch import Tensor

from npft.errors import NpftError
from npft.samplers.magnitude import growing, shrinking

Where = Literal["all", "outliers", "rest"]


class Perturb(Protocol):
    """Makes one perturbation."""

    def __call__(self, values: Tensor, intensity: float, random: torch.Generator) -> Tensor:
        """``(rows, n)``, of L2 norm ``intensity * norm(values)`` in every row."""
        ...


def matched(shape: Tensor, values: Tensor, intensity: float) -> Tensor:
    """``shape (rows, n)`` scaled to the norm asked for; rows of zeros stay so."""
    have = shape.norm(dim=1, keepdim=True)
    want = values.norm(dim=1, keepdim=True) * intensity
    factor: Tensor = want / have.masked_fill(have == 0, 1.0)
    return shape * factor


def largest(values: Tensor, share: float) -> Tensor:
    """Where the ``round(share * n)``, at least 1, largest of each row are, bool ``(rows, n)``."""
    count = max(1, round(share * values.shape[1]))
    chosen = values.abs().topk(count, dim=1).indices
    return torch.zeros_like(values, dtype=torch.bool).scatter_(1, chosen, True)


def clipped(values: Tensor, intensity: float) -> Tensor:
    """Clip each row at the threshold that makes the error's norm the one asked for.

    ``norm(max(|x| - t, 0))`` is convex and falling in t, so Newton's method from 0 approaches the
    root from below.

    Raises:
        NpftError: the intensity is 1 or more, beyond setting everything to 0.
    """
    if intensity >= 1:
        raise NpftError(
            f"clipping cannot reach intensity {intensity:g}: setting everything to 0 is 1; give "
            "intensities below 1"
        )
    sizes = values.abs()
    want = sizes.norm(dim=1, keepdim=True) * intensity
    threshold = torch.zeros_like(want)
    for _ in range(50):
        beyond = (sizes - threshold).clamp(min=0)
        have = beyond.norm(dim=1, keepdim=True)
        if bool(((have - want).abs() <= 1e-5 * want).all()):
            break
        slope = beyond.sum(dim=1, keepdim=True).clamp(min=torch.finfo(have.dtype).tiny)
        threshold = threshold + (have - want) * have / slope
    return -values.sign() * (sizes - threshold).clamp(min=0)


def clipped_share(values: Tensor, share: float) -> Tensor:
    """Clip the ``round(share * n)``, at least 1, largest of each row to the next one's size."""
    count = min(max(1, round(share * values.shape[1])), values.shape[1] - 1)
    threshold = values.abs().topk(count + 1, dim=1).values[:, -1:]
    return -values.sign() * (values.abs() - threshold).clamp(min=0)


def kinds(share: float) -> dict[str, Perturb]:
    """Every kind by name; ``share`` is how many of the values count as outliers."""
    return {
        "gaussian": _noise(_gaussian),
        "uniform": _noise(_uniform),
        "rademacher": _noise(_rademacher),
        "growing": _noise(lambda x, random: growing(x) * _gaussian(x, random)),
        "shrinking": _noise(lambda x, random: shrinking(x) * _gaussian(x, random)),
        "clip": lambda values, intensity, _random: clipped(values, intensity),
        "outliers": _noise(_gaussian, "outliers", share),
        "rest": _noise(_gaussian, "rest", share),
    }


def _noise(
    draw: Callable[[Tensor, torch.Generator], Tensor], where: Where = "all", share: float = 0.0
) -> Perturb:
    def perturb(values: Tensor, intensity: float, random: torch.Generator) -> Tensor:
        shape = draw(values, random)
        if where != "all":
            chosen = largest(values, share)
            shape = shape * (chosen if where == "outliers" else ~chosen)
        return matched(shape, values, intensity)

    return perturb


def _gaussian(like: Tensor, random: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=random, device=like.device)


def _uniform(like: Tensor, random: torch.Generator) -> Tensor:
    return torch.rand(like.shape, generator=random, device=like.device) - 0.5


def _rademacher(like: Tensor, random: torch.Generator) -> Tensor:
    bits = torch.randint(2, like.shape, generator=random, device=like.device)
    return bits.float() * 2 - 1
