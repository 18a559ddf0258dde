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


def test_codebooks_are_those_of_the_weight_at_the_start() -> None:
    drawn = Residual(quantizers=("kmeans",)).bind(WEIGHT, SCORES)
    noise = drawn.sample(WEIGHT, POSITIONS, Grid(3), source())
    assert torch.equal(noise, error(KMeans(bits=3), WEIGHT))
    moved = WEIGHT + 0.1 * normal(8, 64, seed=2)
    codebook = KMeans(bits=3).quantize_weight(WEIGHT, SCORES).tables()["codebook"].float()
    distances = (moved[:, :, None] - codebook[:, None]).abs()
    nearest = codebook.gather(1, distances.argmin(2))
    expected = (nearest - moved).flatten()[POSITIONS]
    found = drawn.sample(moved, POSITIONS, Grid(3), source())
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_each_quantizer_gets_its_turn() -> None:
    drawn, random = Residual().bind(WEIGHT, SCORES), source()
    by_rounding, by_clusters = error(RTN(bits=4), WEIGHT), error(KMeans(bits=4), WEIGHT)
    turns = []
    for _ in range(60):
        noise = drawn.sample(WEIGHT, POSITIONS, Grid(4), random)
        assert torch.equal(noise, by_rounding) != torch.equal(noise, by_clusters)
        turns.append(torch.equal(noise, by_rounding))
    assert 15 <= sum(turns) <= 45


@pytest.mark.parametrize("options", [{"quantizers": ()}, {"quantizers": ("gptq",)}], ids=str)
def test_bad_options_are_refused(options: dict[str, tuple[str, ...]]) -> None:
    with pytest.raises(ValueError, match="quantizers"):
        Residual(**options)  # type: ignore[arg-type]
