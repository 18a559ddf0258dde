"""AutoGPTQ's solver on one weight matrix and one Hessian.

AutoGPTQ's own ``from_pretrained`` refuses to quantize without CUDA, but its solver,
``auto_gptq.quantization.GPTQ``, computes wherever its tensors are.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from auto_gptq.quantization import GPTQ, Quantizer
from torch import Tensor, nn

_LEAST, _MOST = 2.0**-24, 65504.0
"""The least and greatest positive float16."""


@dataclass(frozen=True)
class Settings:
    """How to quantize: AutoGPTQ's options, with ``group_size = 0`` for one group per channel."""

    bits: int
    group_size: int
    sym: bool
    desc_act: bool
    damp_percent: float


@dataclass(frozen=True)
class Solution:
    """A quantized matrix.

    Attributes:
        weight: ``(out, in)`` float32, what the codes stand for.
        codes: ``(out, in)`` uint8.
        scale: ``(out, groups)`` float16.
        zero: ``(out, groups)`` uint8.
        g_idx: ``(in,)`` int32, the group of each input.
        damping: the damping that it took; None where it was rounded to nearest.
    """

    weight: Tensor
    codes: Tensor
    scale: Tensor
    zero: Tensor
    g_idx: Tensor
    damping: float | None

    def stored(self) -> dict[str, Tensor]:
        """What is handed over."""
        tensors = {"codes": self.codes, "scale": self.scale, "zero": self.zero, "g_idx": self.g_idx}
        return {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}


class Unsolved(Exception):
    """GPTQ has no answer for a layer; the text says why."""


class StoredScale(Quantizer):  # type: ignore[misc]
    """AutoGPTQ's grid with the scale in float16, as it is stored.

    So that the error that GPTQ makes up for is the error of the weights that are kept.
    """

    def find_params(self, x: Tensor, weight: bool = False) -> None:
        """Scale and zero of the rows of ``x``."""
        super().find_params(x, weight=weight)
        if self.sym:
            # AutoGPTQ gives a row without a negative weight only half of the range it needs.
            extreme = x.flatten(1).abs().amax(dim=1).view_as(self.scale)
            extreme = torch.where(extreme == 0, torch.ones_like(extreme), extreme)
            self.scale = 2 * extreme / self.maxq
        self.scale = self.scale.clamp(_LEAST, _MOST).half().float()
        self.zero = self.zero.clamp(0, self.maxq)


def solve(weight: Tensor, hessian: Tensor, samples: int, settings: Settings) -> Solution:
    """GPTQ on ``weight (out, in)`` with ``hessian (in, in)``.

    A Hessian that is not positive definite is damped ten times as much, up to all of its mean
    diagonal.

    Raises:
        Unsolved: the Hessian is not finite, or is not positive definite however damped, or the
            result is not on its own grid.
    """
    if not torch.isfinite(hessian).all():
        raise Unsolved("its Hessian overflows")
    damping = settings.damp_percent
    while True:
        try:
            return _attempt(weight, hessian, samples, settings, damping)
        except torch.linalg.LinAlgError as error:
            if damping >= 1:
                raise Unsolved("its Hessian is not positive definite, however damped") from error
            damping = min(10 * damping, 1.0)


def round_to_nearest(weight: Tensor, settings: Settings) -> Solution:
    """The same grid without GPTQ: every weight to its nearest point."""
    size = settings.group_size or weight.shape[1]
    pieces = weight.float().split(size, dim=1)
    grids = [_grid(settings) for _ in pieces]
    for grid, piece in zip(grids, pieces, strict=True):
        grid.find_params(piece, weight=True)
    rounded = torch.cat(
        [grid.quantize(piece) for grid, piece in zip(grids, pieces, strict=True)], dim=1
    )
    scale = torch.cat([grid.scale for grid in grids], dim=1)
    zero = torch.cat([grid.zero for grid in grids], dim=1)
    g_idx = torch.arange(weight.shape[1], device=weight.device) // size
    return _encode(rounded, scale, zero, g_idx, settings, None)


def _attempt(
    weight: Tensor, hessian: Tensor, samples: int, settings: Settings, damping: float
) -> Solution:
    stand_in = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    stand_in.weight = nn.Parameter(weight.float().contiguous(), requires_grad=False)
    solver = GPTQ(stand_in)
    solver.quantizer = _grid(settings)
    solver.H, solver.nsamples = hessian.clone(), samples
    scale, zero, g_idx = solver.fasterquant(
        percdamp=damping,
        group_size=settings.group_size or -1,
        actorder=settings.desc_act,
    )
    return _encode(stand_in.weight.data, scale, zero, g_idx, settings, damping)


def _grid(settings: Settings) -> StoredScale:
    grid = StoredScale()
    grid.configure(settings.bits, perchannel=True, sym=settings.sym)
    return grid


def _encode(
    weight: Tensor,
    scale: Tensor,
    zero: Tensor,
    g_idx: Tensor,
    settings: Settings,
    damping: float | None,
) -> Solution:
    """The codes of weights that lie on the grid.

    Raises:
        Unsolved: they do not.
    """
    where = g_idx.long()
    codes = torch.round(weight / scale[:, where]) + zero[:, where]
    if not torch.equal((codes - zero[:, where]) * scale[:, where], weight):
        raise Unsolved("its weights come out off their grid")
    if codes.min() < 0 or codes.max() > 2**settings.bits - 1:
        raise Unsolved("its codes come out of range")
    return Solution(
        weight,
        codes.to(torch.uint8),
        scale.half(),
        zero.to(torch.uint8),
        g_idx.to(torch.int32),
        damping,
    )
