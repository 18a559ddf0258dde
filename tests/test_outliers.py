"""The top gamma of each matrix: how many, which, and how they are taken and put back."""

from __future__ import annotations

import weakref
from decimal import Decimal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_model
from torch import Tensor

from npft.artifacts import Outliers
from npft.errors import NpftError
from npft.outliers import check_selects, count, select, select_across, top_positions

gammas = st.decimals("0.0001", "1", places=4)


def scores(rows: int, columns: int, levels: int | None = None, seed: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    if levels is None:
        return torch.rand(rows, columns, generator=random)
    return torch.randint(levels, (rows, columns), generator=random).float()


def top_by_sorting(sensitivity: Tensor, wanted: int) -> list[int]:
    """Highest score first, lowest position first among equals: Python's sort is stable."""
    flat = sensitivity.flatten().tolist()
    return sorted(sorted(range(len(flat)), key=lambda i: -flat[i])[:wanted])


@given(gamma=gammas, numel=st.integers(1, 10**7))
def test_count_is_the_exact_floor(gamma: Decimal, numel: int) -> None:
    assert count(float(gamma), numel) == int(gamma * numel)


@pytest.mark.parametrize(
    ("gamma", "numel", "expected"),
    [(0.29, 100, 29), (0.57, 100, 57), (0.1, 30, 3), (0.005, 999, 4), (1, 7, 7), (1e-9, 100, 0)],
)
def test_count_where_floats_would_miss(gamma: float, numel: int, expected: int) -> None:
    assert count(gamma, numel) == expected


@given(
    gamma=gammas,
    rows=st.integers(1, 9),
    columns=st.integers(1, 9),
    levels=st.sampled_from([None, 1, 2, 5]),
    seed=st.integers(0, 99),
)
@settings(max_examples=200, deadline=None)
def test_positions_are_the_top(
    gamma: Decimal, rows: int, columns: int, levels: int | None, seed: int
) -> None:
    sensitivity = scores(rows, columns, levels, seed)
    chosen = top_positions(sensitivity, float(gamma))
    wanted = int(gamma * rows * columns)
    assert len(chosen) == wanted
    assert chosen.indices().dtype == torch.int64
    assert chosen.indices().tolist() == top_by_sorting(sensitivity, wanted)


def test_transposed_scores_give_row_major_positions() -> None:
    sensitivity = scores(6, 4).T
    assert not sensitivity.is_contiguous()
    chosen = top_positions(sensitivity, 0.25)
    assert torch.equal(chosen.indices(), top_positions(sensitivity.clone(), 0.25).indices())


def test_everything_costs_no_index() -> None:
    chosen = top_positions(scores(3, 4), 1.0)
    assert chosen.positions is None
    assert len(chosen) == 12


@pytest.mark.parametrize("transposed", [False, True])
def test_no_index_behaves_like_an_explicit_one(transposed: bool) -> None:
    implicit = Outliers((3, 4), None)
    explicit = Outliers((3, 4), torch.arange(12))
    assert len(implicit) == len(explicit)
    assert torch.equal(implicit.indices("cpu"), explicit.indices("cpu"))
    for outliers in (implicit, explicit):
        weight = scores(4, 3).T if transposed else scores(3, 4)
        before = weight.clone()
        taken = outliers.take(weight)
        assert torch.equal(taken, before.flatten())
        outliers.put_(weight, -taken)
        assert torch.equal(weight, -before)
        assert torch.equal(taken, before.flatten()), "take must copy"


@given(positions=st.sets(st.integers(0, 11)), transposed=st.booleans())
def test_take_and_put_touch_exactly_the_positions(positions: set[int], transposed: bool) -> None:
    outliers = Outliers((3, 4), torch.tensor(sorted(positions), dtype=torch.int64))
    storage = scores(4, 3) if transposed else scores(3, 4)
    weight = storage.T if transposed else storage
    before = weight.clone()
    taken = outliers.take(weight)
    outliers.put_(weight, taken + 10)
    for position in range(12):
        row, column = divmod(position, 4)
        change = 10 if position in positions else 0
        assert weight[row, column] == before[row, column] + change
    outliers.put_(weight, taken)
    assert torch.equal(weight, before)
    assert weight.data_ptr() == storage.data_ptr()


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), -float("inf")])
def test_scores_that_are_not_finite_are_refused_by_layer(broken: float) -> None:
    bad = scores(3, 4)
    bad[1, 2] = broken
    with pytest.raises(NpftError, match="layer second: a sensitivity is NaN or infinite"):
        select([("first", scores(3, 4)), ("second", bad)], 0.5)


@pytest.mark.parametrize("gamma", [0.0, -0.1, 1.0001, 2.0, float("nan"), float("inf")])
def test_gamma_outside_the_range_is_refused(gamma: float) -> None:
    with pytest.raises(NpftError, match=r"gamma=.* is outside \(0, 1\]"):
        top_positions(scores(3, 4), gamma)
    with pytest.raises(NpftError, match=r"gamma=.* is outside \(0, 1\]"):
        select([], gamma)


def test_each_layer_has_its_own_share() -> None:
    """The choice is per matrix: a layer of low scores gives as large a share as any other."""
    chosen = select([("low", scores(5, 8) / 1e6), ("high", scores(10, 4))], 0.1)
    assert list(chosen) == ["low", "high"]
    assert [len(outliers) for outliers in chosen.values()] == [4, 4]
    assert [outliers.shape for outliers in chosen.values()] == [(5, 8), (10, 4)]


def test_a_share_may_be_too_small_for_a_layer() -> None:
    chosen = select([("large", scores(10, 10)), ("small", scores(2, 2))], 0.01)
    assert [len(outliers) for outliers in chosen.values()] == [1, 0]


def test_select_holds_one_matrix_at_a_time() -> None:
    made: list[weakref.ref[Tensor]] = []

    def make(seed: int) -> Tensor:
        assert not any(reference() is not None for reference in made)
        sensitivity = scores(3, 4, seed=seed)
        made.append(weakref.ref(sensitivity))
        return sensitivity

    select(((f"layer{seed}", make(seed)) for seed in range(4)), 0.5)
    assert len(made) == 4


# Across the whole model


@given(
    gamma=gammas,
    shapes=st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=5),
    levels=st.sampled_from([None, 1, 2, 5]),
    seed=st.integers(0, 99),
)
@settings(max_examples=200, deadline=None)
def test_across_the_model_the_top_is_that_of_all_layers_in_a_row(
    gamma: Decimal, shapes: list[tuple[int, int]], levels: int | None, seed: int
) -> None:
    """Ties too: the matrices one after the other are one long vector."""
    layers = {f"l{i}": scores(*shape, levels, seed + i) for i, shape in enumerate(shapes)}
    joined = torch.cat([values.flatten() for values in layers.values()])
    chosen = select_across(layers.items(), float(gamma), joined.numel())
    assert list(chosen) == list(layers)
    found, start = [], 0
    for name, outliers in chosen.items():
        assert outliers.shape == layers[name].shape
        assert outliers.indices().dtype == torch.int64
        found += [start + position for position in outliers.indices().tolist()]
        start += layers[name].numel()
    assert found == top_by_sorting(joined, int(gamma * joined.numel()))


def test_across_the_model_a_layer_may_have_none_or_all() -> None:
    layers = [("low", scores(5, 8) / 1e6), ("high", 1 + scores(2, 2)), ("middle", scores(6, 6))]
    chosen = select_across(layers, 0.1, 80)
    assert {name: len(outliers) for name, outliers in chosen.items()} == {
        "low": 0,
        "high": 4,
        "middle": 4,
    }
    assert chosen["high"].positions is None
    assert torch.equal(chosen["middle"].indices(), top_positions(layers[2][1], 0.12).indices())


def test_across_the_model_everything_costs_no_index() -> None:
    chosen = select_across([("a", scores(3, 4)), ("b", scores(2, 2))], 1.0, 16)
    assert [outliers.positions for outliers in chosen.values()] == [None, None]


@pytest.mark.parametrize("gamma", [0.25, 1.0])
def test_across_the_model_one_matrix_is_held_at_a_time(gamma: float) -> None:
    made: list[weakref.ref[Tensor]] = []

    def make(seed: int) -> Tensor:
        assert not any(reference() is not None for reference in made)
        sensitivity = scores(3, 4, seed=seed)
        made.append(weakref.ref(sensitivity))
        return sensitivity

    select_across(((f"layer{seed}", make(seed)) for seed in range(4)), gamma, 48)
    assert len(made) == 4


@pytest.mark.parametrize("gamma", [0.5, 1.0])
def test_across_the_model_scores_that_are_not_finite_are_refused_by_layer(gamma: float) -> None:
    bad = scores(3, 4)
    bad[1, 2] = float("nan")
    with pytest.raises(NpftError, match="layer second: a sensitivity is NaN or infinite"):
        select_across([("first", scores(3, 4)), ("second", bad)], gamma, 24)
    with pytest.raises(NpftError, match=r"gamma=0 is outside \(0, 1\]"):
        select_across([], 0, 24)


def test_a_share_too_small_for_any_matrix_may_suffice_for_the_model() -> None:
    """The largest matrix of the tiny model has 2048 weights, the model 18,432."""
    layers = list(tiny_model().layers.values())
    for gamma, in_a_matrix, in_the_model in [
        (1 / 2000, True, True),
        (1 / 10000, False, True),
        (1 / 20000, False, False),
    ]:
        for scope, enough in (("matrix", in_a_matrix), ("model", in_the_model)):
            if enough:
                check_selects(gamma, layers, scope)  # type: ignore[arg-type]
            else:
                with pytest.raises(NpftError, match="selects no weight"):
                    check_selects(gamma, layers, scope)  # type: ignore[arg-type]
