"""Weighted 1-D k-means against an exact dynamic programme."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from npft.quantizers.kmeans_1d import weighted_kmeans_1d

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def optimum(x: np.ndarray, w: np.ndarray, clusters: int) -> float:
    """The least cost of one row, by an O(k n^2) programme over every interval."""
    order = np.argsort(x)
    x, w = x[order], w[order]
    n = len(x)
    interval = np.full((n + 1, n + 1), np.inf)  # cost of x[i:j], for i <= j
    for i in range(n + 1):
        mass = np.concatenate(([0.0], np.cumsum(w[i:])))
        moment = np.concatenate(([0.0], np.cumsum(w[i:] * (x[i:] - x[min(i, n - 1)]))))
        square = np.concatenate(([0.0], np.cumsum(w[i:] * (x[i:] - x[min(i, n - 1)]) ** 2)))
        spread = square - np.divide(moment**2, mass, out=np.zeros_like(mass), where=mass > 0)
        interval[i, i:] = np.maximum(spread, 0)
    best = interval[0]
    for _ in range(clusters - 1):
        best = (best[:, None] + interval).min(0)
    return float(best[n])


def costs(x: Tensor, w: Tensor, centroids: Tensor, codes: Tensor) -> Tensor:
    error = x.double() - centroids.double().gather(1, codes.long())
    return (w.double() * error.square()).sum(1)


def sample(name: str, rows: int, n: int, seed: int) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(seed)
    values, weights = name.split("/")
    x = {
        "normal": lambda: rng.standard_normal((rows, n)),
        "laplace": lambda: rng.laplace(size=(rows, n)),
        "student": lambda: rng.standard_t(3, size=(rows, n)),
        "integers": lambda: np.round(8 * rng.standard_normal((rows, n))),
    }[values]()
    w = {
        "chi2": lambda: rng.chisquare(1, size=(rows, n)),
        "lognormal": lambda: rng.lognormal(0, 2, size=(rows, n)),
        "sparse": lambda: rng.chisquare(1, size=(rows, n)) * (rng.random((rows, n)) < 0.3),
    }[weights]()
    return torch.tensor(x).float(), torch.tensor(w).float()


FAMILIES = [
    "normal/chi2",
    "normal/lognormal",
    "laplace/lognormal",
    "student/chi2",
    "student/lognormal",
    "integers/chi2",
    "normal/sparse",
]


@pytest.fixture(params=[1, 2], ids=["one thread", "two threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_reference_solves_a_case_by_hand() -> None:
    x = np.array([10.0, 0.0, 1.0, 12.0])
    w = np.array([3.0, 1.0, 1.0, 1.0])
    assert optimum(x, w, 2) == pytest.approx(0.5 + 3 * 0.5**2 + 1.5**2)
    assert optimum(x, w, 3) == pytest.approx(0.5)
    assert optimum(x, w, 4) == 0.0


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("clusters", [2, 4, 8, 16, 24])
def test_cost_is_close_to_the_optimum(clusters: int, device: str) -> None:
    gaps = []
    for family in FAMILIES:
        for n in (60, 130, 200):
            x, w = sample(family, 8, n, seed=n)
            centroids, codes = weighted_kmeans_1d(x.to(device), w.to(device), clusters)
            for row, cost in enumerate(costs(x, w, centroids.cpu(), codes.cpu()).tolist()):
                exact = optimum(x[row].double().numpy(), w[row].double().numpy(), clusters)
                gaps.append((cost - exact) / max(exact, 1e-9))
    assert min(gaps) > -1e-6
    assert np.mean(gaps) < 1e-4
    assert np.mean(np.array(gaps) < 1e-3) > 0.97
    assert max(gaps) < 0.01


def test_few_distinct_values_are_solved_exactly() -> None:
    x, w = sample("integers/chi2", 50, 150, seed=5)
    for clusters in (4, 16):
        centroids, codes = weighted_kmeans_1d(x, w, clusters)
        for row, cost in enumerate(costs(x, w, centroids, codes).tolist()):
            exact = optimum(x[row].double().numpy(), w[row].double().numpy(), clusters)
            assert cost == pytest.approx(exact, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("clusters", [4, 16, 40])
def test_result_is_a_fixed_point_of_lloyd(family: str, clusters: int) -> None:
    x, w = sample(family, 20, 300, seed=1)
    centroids, codes = weighted_kmeans_1d(x, w, clusters)
    assert centroids.shape == (20, clusters)
    assert centroids.dtype == torch.float32
    assert codes.shape == x.shape
    assert codes.dtype == torch.uint8
    assert (centroids.diff(dim=1) >= 0).all()

    distance = (x[:, :, None] - centroids[:, None, :]).abs()
    own = distance.gather(2, codes.long()[:, :, None]).squeeze(2)
    torch.testing.assert_close(own, distance.amin(2), rtol=0, atol=1e-6)

    zeros = torch.zeros(centroids.shape, dtype=torch.float64)
    mass = zeros.scatter_add(1, codes.long(), w.double())
    moment = zeros.scatter_add(1, codes.long(), w.double() * x.double())
    used = mass > 0
    torch.testing.assert_close(
        centroids[used].double(), (moment / mass)[used], rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("clusters", [4, 16, 32])
def test_result_depends_on_the_input_alone(clusters: int, threads: int) -> None:
    x, w = sample("student/lognormal", 700, 90, seed=2)
    before = x.clone(), w.clone()
    state = torch.get_rng_state()
    first = weighted_kmeans_1d(x, w, clusters)
    torch.manual_seed(1234)
    second = weighted_kmeans_1d(x, w, clusters)
    torch.set_rng_state(state)
    alone = [weighted_kmeans_1d(x[i : i + 1], w[i : i + 1], clusters) for i in range(0, 700, 70)]
    for part in (0, 1):
        assert torch.equal(first[part], second[part])
        assert torch.equal(first[part][::70], torch.cat([result[part] for result in alone]))
    assert torch.equal(x, before[0])
    assert torch.equal(w, before[1])
    assert torch.get_num_threads() == threads


def test_leaves_the_random_state_alone() -> None:
    x, w = sample("normal/chi2", 4, 100, seed=3)
    state = torch.get_rng_state()
    weighted_kmeans_1d(x, w, 8)
    assert torch.equal(torch.get_rng_state(), state)


def test_many_blocks_give_what_one_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    x, w = sample("laplace/lognormal", 100, 120, seed=4)
    whole = weighted_kmeans_1d(x, w, 8)
    monkeypatch.setattr("npft.quantizers.kmeans_1d._CPU_BLOCK", 1000)
    monkeypatch.setattr("npft.quantizers.kmeans_search._CPU_PAIRS", 2**13)
    parts = weighted_kmeans_1d(x, w, 8)
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))


def test_rows_are_independent() -> None:
    x, w = sample("normal/lognormal", 30, 150, seed=6)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    centroids, codes = weighted_kmeans_1d(x, w, 8)
    moved_centroids, moved_codes = weighted_kmeans_1d(x[order], w[order], 8)
    assert torch.equal(moved_centroids, centroids[order])
    assert torch.equal(moved_codes, codes[order])


def test_order_within_a_row_does_not_matter() -> None:
    x, w = sample("normal/lognormal", 30, 150, seed=7)
    order = torch.randperm(150, generator=torch.Generator().manual_seed(0))
    centroids, codes = weighted_kmeans_1d(x, w, 8)
    moved_centroids, moved_codes = weighted_kmeans_1d(x[:, order], w[:, order], 8)
    torch.testing.assert_close(moved_centroids, centroids)
    assert torch.equal(moved_codes, codes[:, order])


def test_scale_and_shift_carry_over() -> None:
    x, w = sample("integers/lognormal", 30, 150, seed=8)
    x = x + torch.arange(150) / 256  # exact in float32, also after the shift
    centroids, codes = weighted_kmeans_1d(x, w, 8)
    moved_centroids, moved_codes = weighted_kmeans_1d(4 * x - 32, 8 * w, 8)
    torch.testing.assert_close(moved_centroids, 4 * centroids - 32)
    assert torch.equal(moved_codes, codes)
    mirrored_centroids, mirrored_codes = weighted_kmeans_1d(-x, w, 8)
    mirrored = costs(-x, w, mirrored_centroids, mirrored_codes)
    torch.testing.assert_close(mirrored, costs(x, w, centroids, codes), rtol=0.01, atol=0)


def test_weights_of_zero_mean_equal_weights() -> None:
    x, w = sample("normal/chi2", 3, 100, seed=9)
    w[1] = 0
    expected = weighted_kmeans_1d(x[1:2], torch.ones(1, 100), 4)
    centroids, codes = weighted_kmeans_1d(x, w, 4)
    assert torch.equal(centroids[1:2], expected[0])
    assert torch.equal(codes[1:2], expected[1])


def test_values_of_weight_zero_do_not_count_but_are_assigned() -> None:
    x, w = sample("normal/chi2", 10, 80, seed=10)
    extra = torch.tensor([-100.0, 0.01, 100.0]).expand(10, 3)
    centroids, codes = weighted_kmeans_1d(
        torch.cat((extra, x), 1), torch.cat((torch.zeros(10, 3), w), 1), 4
    )
    expected_centroids, expected_codes = weighted_kmeans_1d(x, w, 4)
    torch.testing.assert_close(centroids, expected_centroids)
    assert torch.equal(codes[:, 3:], expected_codes)
    assert (codes[:, 0] == 0).all()
    assert (codes[:, 2] == 3).all()


@pytest.mark.parametrize("clusters", [2, 4, 16, 256])
@pytest.mark.parametrize(
    "row",
    [
        [0.25] * 50,
        [0.0] * 7,
        [1.5],
        [3.0, -1.0],
        [1.0, 2.0] * 30,
        [-1e30, 2.0] * 2,
        [*range(16)] * 4,
    ],
)
def test_few_distinct_values_cost_nothing(row: list[float], clusters: int) -> None:
    if len(set(row)) > clusters:
        pytest.skip("more distinct values than clusters")
    x = torch.tensor([row, row], dtype=torch.float32)
    w = torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) + 0.1
    centroids, codes = weighted_kmeans_1d(x, w, clusters)
    torch.testing.assert_close(centroids.gather(1, codes.long()), x)
    assert (centroids.diff(dim=1) >= 0).all()


@pytest.mark.parametrize("outlier", [1e4, -1e7, 1e12, -3e38])
@pytest.mark.parametrize("clusters", [4, 16, 20])
def test_huge_value_takes_one_centroid(outlier: float, clusters: int) -> None:
    x, w = sample("normal/chi2", 10, 80, seed=11)
    alone, _ = weighted_kmeans_1d(x, w, clusters - 1)
    x = torch.cat((x, torch.full((10, 1), outlier)), 1)
    w = torch.cat((w, torch.ones(10, 1)), 1)
    centroids, codes = weighted_kmeans_1d(x, w, clusters)
    torch.testing.assert_close(centroids.gather(1, codes.long())[:, -1], x[:, -1])
    rest = centroids[:, :-1] if outlier > 0 else centroids[:, 1:]
    inner = (x[:, :-1, None] - rest[:, None]).square().amin(2)
    expected = (x[:, :-1, None] - alone[:, None]).square().amin(2)
    torch.testing.assert_close(
        (w[:, :-1] * inner).sum(1), (w[:, :-1] * expected).sum(1), rtol=0.01, atol=0
    )


@pytest.mark.parametrize("weight", [1e6, 1e12, 1e30])
@pytest.mark.parametrize("clusters", [4, 16, 20])
def test_huge_weight_pins_one_centroid(weight: float, clusters: int) -> None:
    x, w = sample("normal/chi2", 10, 80, seed=12)
    w[:, 40] = weight
    centroids, codes = weighted_kmeans_1d(x, w, clusters)
    cost = costs(x, w, centroids.double(), codes)
    own = centroids.gather(1, codes.long())[:, 40]
    torch.testing.assert_close(own, x[:, 40], rtol=1e-5, atol=1e-5)
    # The rest of the cost must be as good as if the weight were merely large.
    tame = w.clone()
    tame[:, 40] = 1e5
    other = torch.arange(80) != 40
    rest = costs(x[:, other], w[:, other], centroids, codes[:, other])
    for row in range(10):
        exact = optimum(x[row].double().numpy(), tame[row].double().numpy(), clusters)
        assert rest[row].item() == pytest.approx(exact, rel=0.01)
    assert cost.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_float_types_give_float32_centroids(dtype: torch.dtype) -> None:
    x, w = sample("normal/chi2", 5, 120, seed=13)
    x, w = x.to(dtype), w.to(dtype)
    centroids, codes = weighted_kmeans_1d(x, w, 8)
    expected_centroids, expected_codes = weighted_kmeans_1d(x.float(), w.float(), 8)
    torch.testing.assert_close(centroids, expected_centroids)
    assert centroids.dtype == torch.float32
    assert torch.equal(codes, expected_codes)


def test_no_rows_and_views_and_gradients_are_fine() -> None:
    centroids, codes = weighted_kmeans_1d(torch.zeros(0, 5), torch.zeros(0, 5), 4)
    assert centroids.shape == (0, 4)
    assert codes.shape == (0, 5)
    x, w = sample("normal/chi2", 60, 9, seed=14)
    strided = weighted_kmeans_1d(x.T.requires_grad_(), w.T, 4)
    dense = weighted_kmeans_1d(x.T.contiguous(), w.T.contiguous(), 4)
    assert all(torch.equal(a, b) for a, b in zip(strided, dense, strict=True))
    assert not strided[0].requires_grad


@pytest.mark.parametrize(
    ("values", "weights", "clusters", "message"),
    [
        (torch.zeros(2, 3), torch.ones(2, 4), 4, "shape"),
        (torch.zeros(3), torch.ones(3), 4, "shape"),
        (torch.zeros(2, 0), torch.ones(2, 0), 4, "shape"),
        (torch.zeros(2, 3).int(), torch.ones(2, 3), 4, "floating point"),
        (torch.zeros(2, 3), torch.ones(2, 3), 1, "between 2 and 256"),
        (torch.zeros(2, 3), torch.ones(2, 3), 257, "between 2 and 256"),
        (torch.tensor([[0.0, torch.nan]]), torch.ones(1, 2), 4, "values must be finite"),
        (torch.tensor([[0.0, -torch.inf]]), torch.ones(1, 2), 4, "values must be finite"),
        (torch.zeros(1, 2), torch.tensor([[1.0, torch.nan]]), 4, "weights must be finite"),
        (torch.zeros(1, 2), torch.tensor([[1.0, torch.inf]]), 4, "weights must be finite"),
        (torch.zeros(1, 2), torch.tensor([[1.0, -1.0]]), 4, "non-negative"),
    ],
)
def test_wrong_input_is_named(values: Tensor, weights: Tensor, clusters: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        weighted_kmeans_1d(values, weights, clusters)
