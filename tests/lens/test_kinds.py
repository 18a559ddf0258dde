"""Each perturbation: its norm, its distribution, where it lies, and how it follows |x|."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from refusals import refusal
from scipy import integrate, stats
from torch import Tensor

from npft.lens.applying import correlation
from npft.lens.kinds import clipped, clipped_share, kinds, largest

SHARE = 0.02
KINDS = kinds(SHARE)


def values(rows: int = 3, columns: int = 20_000) -> Tensor:
    """Normal, heavy-tailed and tiny rows."""
    random = torch.Generator().manual_seed(0)
    drawn = torch.randn(rows, columns, generator=random)
    drawn[1] = drawn[1] ** 5
    drawn[2] *= 1e-4
    return drawn


def normal() -> Tensor:
    return torch.randn(1, 400_000, generator=torch.Generator().manual_seed(2))


def made(kind: str, of: Tensor, intensity: float = 0.1) -> Tensor:
    return KINDS[kind](of, intensity, torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("intensity", [0.01, 0.3, 0.9])
def test_every_row_has_the_norm_asked_for(kind: str, intensity: float) -> None:
    given = values()
    ratio = made(kind, given, intensity).norm(dim=1) / given.norm(dim=1)
    assert torch.allclose(ratio, torch.full((3,), intensity), rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_zeros_stay_zeros_and_the_values_are_left_alone(kind: str) -> None:
    given = values()
    given[1] = 0
    before = given.clone()
    assert not made(kind, given)[1].any()
    assert torch.equal(given, before)


@pytest.mark.parametrize(
    ("kind", "distribution"),
    [
        ("gaussian", stats.norm()),
        ("uniform", stats.uniform(-math.sqrt(3), 2 * math.sqrt(3))),
    ],
)
def test_distribution_by_kolmogorov_and_smirnov(kind: str, distribution) -> None:
    drawn = made(kind, values())[0]
    standard = (drawn / drawn.square().mean().sqrt()).numpy()
    assert stats.kstest(standard, distribution.cdf).pvalue > 0.01


def test_rademacher_has_one_size_and_two_signs() -> None:
    drawn = made("rademacher", values())[0]
    assert torch.equal(drawn.abs(), drawn.abs()[0].expand_as(drawn))
    assert 0.48 < float((drawn > 0).float().mean()) < 0.52


@pytest.mark.parametrize("kind", ["gaussian", "uniform"])
def test_plain_noise_ignores_magnitude(kind: str) -> None:
    given = values()[:1]
    assert abs(correlation(given, made(kind, given))) < 0.03


def test_a_constant_size_correlates_with_nothing() -> None:
    given = values()[:1]
    assert correlation(given, made("rademacher", given)) == 0


def test_correlation_of_growing_noise_is_the_closed_form() -> None:
    """For x and g standard normal, corr(|x|, |x g|) = m / sqrt(1 + m^2), m = sqrt(2 / pi)."""
    given = normal()
    mean = math.sqrt(2 / math.pi)
    expected = mean / math.sqrt(1 + mean**2)
    assert correlation(given, made("growing", given)) == pytest.approx(expected, abs=0.01)


def test_correlation_of_shrinking_noise_is_the_integral() -> None:
    """Size 1 / (1 + |x|) for a standard normal x, times an independent |g|."""

    def mean(function) -> float:
        return 2 * integrate.quad(lambda x: function(x) * stats.norm.pdf(x), 0, np.inf)[0]

    one = math.sqrt(2 / math.pi)
    size, square, product = (
        mean(lambda x: 1 / (1 + x)),
        mean(lambda x: 1 / (1 + x) ** 2),
        mean(lambda x: x / (1 + x)),
    )
    spread = math.sqrt((1 - one**2) * (square - (one * size) ** 2))
    expected = one * (product - one * size) / spread
    given = normal()
    assert expected < -0.2
    assert correlation(given, made("shrinking", given)) == pytest.approx(expected, abs=0.01)


def test_correlation_is_pearsons() -> None:
    one, two = values()[:1], made("growing", values()[:1])
    expected = np.corrcoef(one[0].abs().numpy(), two[0].abs().numpy())[0, 1]
    assert correlation(one, two) == pytest.approx(expected, abs=1e-5)


def test_outliers_and_rest_share_the_places_between_them() -> None:
    given = values()
    on, off = made("outliers", given) != 0, made("rest", given) != 0
    assert torch.equal(on, ~off)
    assert on.sum(1).tolist() == [400, 400, 400]
    for row in range(3):
        assert given[row][on[row]].abs().min() >= given[row][off[row]].abs().max()


def test_at_least_one_value_is_an_outlier() -> None:
    assert largest(torch.tensor([[1.0, -3.0, 2.0]]), 1e-6).tolist() == [[False, True, False]]


@pytest.mark.parametrize("intensity", [0.01, 0.5, 0.9])
def test_clipping_changes_what_is_beyond_one_threshold_and_nothing_else(intensity: float) -> None:
    given = values()
    after = given + clipped(given, intensity)
    for row in range(3):
        threshold = after[row].abs().max()
        expected = given[row].clamp(-threshold, threshold)
        assert torch.allclose(after[row], expected, rtol=1e-5, atol=float(threshold) * 1e-5)


def test_clipping_a_share_brings_it_to_the_next_ones_size() -> None:
    given = values()
    after = given + clipped_share(given, 0.001)
    assert (after != given).sum(1).tolist() == [20, 20, 20]
    next_one = given.abs().sort(1, descending=True).values[:, 20]
    assert torch.allclose(after.abs().amax(1), next_one, rtol=1e-6)


def test_clipping_everything_away_is_refused() -> None:
    refusal(lambda: clipped(values(), 1.0), "intensity 1", "below 1")


def test_the_same_stream_gives_the_same_draws_at_every_intensity() -> None:
    given = values()
    assert torch.allclose(made("gaussian", given, 0.2), 2 * made("gaussian", given, 0.1))
