"""The residual of real quantizers as noise."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from npft.contracts import Quantizer
from npft.grid import Grid
from npft.quantizers import RTN, KMeans
from npft.samplers import Residual


def normal(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


WEIGHT, SCORES = normal(8, 64), normal(8, 64, seed=1).square()
POSITIONS = torch.arange(0, 512, 3)


def source(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def error(quantizer: Quantizer, weight: Tensor) -> Tensor:
    stands_for = quantizer.quantize_weight(weight, SCORES).dequantize()
    return (stands_for - weight).flatten()[POSITIONS]


@pytest.mark.parametrize("grid", [Grid(4), Grid(3, 16), Grid(8)])
def test_noise_takes_the_weight_to_where_rounding_takes_it(grid: Grid) -> None:
    drawn = Residual(quantizers=("rtn",)).bind(WEIGHT, SCORES)
    noise = drawn.sample(WEIGHT, POSITIONS, grid, source())
    assert torch.equal(noise, error(RTN(bits=grid.bits, group_size=grid.group_size), WEIGHT))
    moved = WEIGHT + 0.1 * normal(8, 64, seed=2)
    noise = drawn.sample(moved, POSITIONS, grid, source())
    assert torch.equal(noise, error(RTN(bits=grid.bits, group_size=grid.group_size), moved))


@pytest.mark.parametrize("grid", [Grid(4), Grid(3)])
def test_codebooks_follow_the_weight(grid: Grid) -> None:
    drawn = Residual(quantizers=("kmeans",)).bind(WEIGHT, SCORES)
    follow = KMeans(bits=grid.bits).follow(WEIGHT, SCORES)
    for step in range(3):
        moved = WEIGHT + 0.1 * step * normal(8, 64, seed=2)
        noise = drawn.sample(moved, POSITIONS, grid, source())
        expected = (follow(moved).dequantize() - moved).flatten()[POSITIONS]
        assert torch.equal(noise, expected)


def test_a_step_has_one_quantizer_and_each_gets_its_turn() -> None:
    random = source()
    turns = [Residual().each_step(random) for _ in range(60)]
    assert {turn.quantizers for turn in turns} == {("rtn",), ("kmeans",)}
    assert 15 <= sum(turn.quantizers == ("rtn",) for turn in turns) <= 45
    only = Residual(quantizers=("rtn",))
    assert only.each_step(random) == only


@pytest.mark.parametrize("options", [{"quantizers": ()}, {"quantizers": ("gptq",)}], ids=str)
def test_bad_options_are_refused(options: dict[str, tuple[str, ...]]) -> None:
    with pytest.raises(ValueError, match="quantizers"):
        Residual(**options)  # type: ignore[arg-type]
