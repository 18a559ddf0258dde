"""What the layouts for uniform grids share."""

from __future__ import annotations

import torch
from torch import Tensor

from npft.artifacts import PackedWeight, UniformWeight
from npft.errors import NpftError


def only_uniform(weight: PackedWeight) -> UniformWeight:
    """The weight, if a uniform grid is all that it is.

    Raises:
        NpftError: it has a codebook or a sparse part.
    """
    if not isinstance(weight, UniformWeight) or weight.sparse is not None:
        raise NpftError("only npft's own format has a place for codebooks and sparse parts")
    return weight


def contiguous_groups(weight: PackedWeight) -> UniformWeight:
    """The weight, if it is uniform and its groups are contiguous.

    Raises:
        NpftError: it is of another kind, or in act-order.
    """
    weight = only_uniform(weight)
    if weight.g_idx is not None:
        raise NpftError("only the formats gptq and npft have a place for act-order")
    return weight


def in_order(weight: UniformWeight) -> Tensor:
    """The group of each input ``(in,)`` int32 where groups are contiguous."""
    inputs = torch.arange(weight.shape[1], dtype=torch.int32, device=weight.codes.device)
    return inputs // (weight.group_size or weight.shape[1])


def symmetric(weight: UniformWeight) -> bool:
    """Whether all zero points are in the middle of the codes."""
    return bool((weight.zero == 2 ** (weight.bits - 1)).all())
