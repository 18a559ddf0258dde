"""The contract of samplers."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from npft.contracts import Draw, Remembers, Sampler
from npft.grid import Grid
from npft.seeding import generator
from npft.testing.models import devices
from npft.testing.promises import check_class, left_alone, require, same


def check_sampler(sampler: Sampler) -> None:
    """Check a sampler against :class:`npft.contracts.Sampler`.

    It is used as tuning does: each step by what :meth:`~npft.contracts.Sampler.each_step` gives,
    bound to the matrix once, on weights that move a little.

    Raises:
        AssertionError: options are not validated, or cannot be hashed; a step has no sampler; the
            noise has the wrong shape, dtype or device, is NaN or infinite, has a mean over the
            matrix that is too far from zero for chance, or differs between two runs with equal
            generators; what was bound does not go on from the state that it tells; the inputs
            change; the global random state is touched.
    """
    check_class(sampler, Sampler)
    _check_hash(sampler)
    for device in devices():
        weight = torch.randn(12, 8, generator=generator(0, "weights")).to(device)
        everywhere = torch.arange(weight.numel(), device=device)
        for case in (weight, weight.T, weight.bfloat16(), torch.zeros_like(weight)):
            for positions in (everywhere, everywhere[3::7], everywhere[5:6], everywhere[:0]):
                for grid in (Grid(4), Grid(3, group_size=4), Grid(8)):
                    _check_noise(sampler, case, positions, grid)
        _check_mean(sampler, device)
        _check_memory(sampler, weight, everywhere)


def _check_hash(sampler: Sampler) -> None:
    try:
        hash(sampler)
    except TypeError as error:
        raise AssertionError(
            f"{type(sampler).__name__} cannot be hashed: give it a tuple in place of a list"
        ) from error


def _check_noise(sampler: Sampler, weight: Tensor, positions: Tensor, grid: Grid) -> None:
    where = f"for {len(positions)} positions of a {weight.dtype} weight {tuple(weight.shape)}"
    with left_alone(sampler, weight, positions):
        noises = _draws(sampler, weight, positions, grid)
    for noise in noises:
        require(
            noise.shape == positions.shape and noise.dtype == weight.dtype,
            sampler,
            f"gives {tuple(noise.shape)} {noise.dtype} {where}: one value per position, in the "
            "weight's dtype",
        )
        there = noise.device == weight.device
        require(there, sampler, f"gives noise on {noise.device}, not on {weight.device}")
        require(bool(torch.isfinite(noise).all()), sampler, f"gives NaN or infinite noise {where}")
    again = _draws(sampler, weight, positions, grid)
    equal = all(same(one, other) for one, other in zip(noises, again, strict=True))
    require(equal, sampler, "draws from another source than its generator")


def _check_mean(sampler: Sampler, device: str) -> None:
    weight = torch.randn(64, 64, generator=generator(1, "weights")).to(device)
    everywhere = torch.arange(weight.numel(), device=device)
    noise = torch.stack(_draws(sampler, weight, everywhere, Grid(4), count=8)).double()
    limit = 6 * float(noise.square().mean().sqrt()) / math.sqrt(weight.numel())
    mean = float(noise.mean())
    require(
        abs(mean) <= limit, sampler, f"gives noise of mean {mean:.3g}, not within {limit:.3g} of 0"
    )


def _check_memory(sampler: Sampler, weight: Tensor, positions: Tensor) -> None:
    """Where a tuning is taken up again, the next noise is the one that would have come."""
    step = sampler.each_step(generator(0, "choices"))
    known = _scores(weight) if sampler.needs_sensitivity else None
    old, moved = step.bind(weight, known), weight * 1.25
    if not isinstance(old, Remembers):
        return
    _sample(old, weight, positions, "before")
    state = {name: value.clone() for name, value in old.state().items()}
    require(not any("/" in name for name in state), sampler, "has states with a slash in a name")
    new: Draw = step.bind(moved, known)
    assert isinstance(new, Remembers)
    new.load_state(state)
    expected, found = (_sample(draw, moved, positions, "after") for draw in (old, new))
    require(same(expected, found), sampler, "does not go on from the state that it tells")


def _sample(draw: Draw, weight: Tensor, positions: Tensor, purpose: str) -> Tensor:
    return draw.sample(weight, positions, Grid(4), generator(0, purpose, weight.device))


def _scores(weight: Tensor) -> Tensor:
    return torch.rand(weight.shape, generator=generator(0, "scores")).to(weight.device)


def _draws(
    sampler: Sampler, weight: Tensor, positions: Tensor, grid: Grid, count: int = 3
) -> list[Tensor]:
    """The noises ``(k,)`` of successive steps for one matrix, which moves after the first."""
    source, choices = generator(0, "noise", weight.device), generator(0, "choices")
    known = _scores(weight) if sampler.needs_sensitivity else None
    bound: dict[Sampler, Draw] = {}
    noises = []
    for index in range(count):
        step = sampler.each_step(choices)
        require(isinstance(step, Sampler), sampler, f"gives {step!r} for a step: give a Sampler")
        if step not in bound:
            bound[step] = step.bind(weight, known)
        moved = weight if index == 0 else weight * (1 + index / 64)
        noises.append(bound[step].sample(moved, positions, grid, source))
    return noises
