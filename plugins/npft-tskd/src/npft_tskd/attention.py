"""Attention maps of feature maps, how they change, and how far they are from the teacher's."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor


def attention_map(features: Tensor, channel_dim: int = 1) -> Tensor:
    r"""Where a network looks: the mean over channels of the squared features, normalised.

    .. math:: \mathrm{at}(F)_p = a_p \Big/ \sqrt{\tfrac{1}{P} \sum_q a_q^2}, \qquad
              a_p = \tfrac{1}{C} \sum_c F_{cp}^2

    Each sample's map has root mean square 1 over its P positions, so that errors of maps of
    different sizes compare. That is :math:`\sqrt{P}` times the unit vector of attention transfer
    (arXiv 1612.03928). Where all features are zero, so is the map.

    Args:
        features: ``(batch, channels, *spatial)``, or ``(batch, tokens, features)`` with
            ``channel_dim=-1``.

    Returns:
        ``(batch, *spatial)`` or ``(batch, tokens)``, non-negative, in float32 or wider.
    """
    wide = features.to(torch.promote_types(features.dtype, torch.float32))
    energy = wide.square().mean(dim=channel_dim)
    return _unit(energy)


def resized(maps: Tensor, spatial: torch.Size) -> Tensor:
    """Attention maps ``(batch, *spatial)`` brought to another size and normalised again.

    For a teacher whose stages have another resolution than the student's: averages over areas.
    """
    if maps.shape[1:] == spatial:
        return maps
    channel = maps.unsqueeze(1)
    if len(spatial) == 1:
        return _unit(F.adaptive_avg_pool1d(channel, spatial[0]).squeeze(1))
    return _unit(F.adaptive_avg_pool2d(channel, (spatial[0], spatial[1])).squeeze(1))


def increments(maps: Tensor) -> Tensor:
    """``|at_t - at_(t-1)|`` of a sequence ``(time, batch, *spatial)``: one shorter in time."""
    return torch.stack([(after - before).abs() for before, after in pairwise(maps)])


def gap(student: Tensor, teacher: Tensor) -> Tensor:
    """``|at(student) - at(teacher)|``, the target; its gradient reaches the student."""
    return (student - teacher.detach()).abs()


def _unit(energy: Tensor) -> Tensor:
    """Divide each sample by its root mean square over positions, unless that is zero."""
    positions = tuple(range(1, energy.dim()))
    largest = energy.amax(dim=positions, keepdim=True)  # first, lest the squares overflow
    scaled = energy / torch.where(largest > 0, largest, 1.0)
    size = scaled.square().mean(dim=positions, keepdim=True)
    return scaled / torch.where(size > 0, size, 1.0).sqrt()
