"""Noise goes onto the chosen base weights, and off again without a trace."""

from __future__ import annotations

from collections import Counter
from typing import Any, ClassVar

import pytest
import torch
from recording import constant, everywhere, scripted, some, uniform, weights_of
from tiny import tiny_model
from torch import Tensor

from npft.adapters import attached, trainable
from npft.artifacts import LanguageModel, Outliers
from npft.contracts import Draw, Sampler
from npft.grid import Grid
from npft.noise import Noise

architectures = pytest.mark.parametrize("architecture", ["Llama", "GPT2"])
GRID = [Grid(4)]


def noise(sampler: Sampler, outliers: dict[str, Outliers], **options: Any) -> Noise:
    grids = options.pop("grids", GRID)
    return Noise(sampler, outliers, grids, torch.Generator().manual_seed(0), **options)


def differences(model: LanguageModel, source: Noise) -> dict[str, Tensor]:
    """What one application adds to each weight."""
    before = weights_of(model)
    with source.applied(model):
        shaken = weights_of(model)
    return {name: shaken[name] - before[name] for name in before}


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@architectures
@pytest.mark.parametrize("chosen", [some, everywhere])
def test_noise_lies_exactly_on_the_positions(architecture: str, chosen: Any) -> None:
    model = tiny_model(architecture)
    outliers = chosen(model)
    before = weights_of(model)
    with noise(constant(0.25), outliers).applied(model):
        shaken = weights_of(model)
    assert_same(weights_of(model), before)
    for name, weight in before.items():
        expected = weight.flatten()
        expected[outliers[name].indices()] += 0.25
        assert torch.equal(shaken[name].flatten(), expected)


@architectures
def test_restored_bit_for_bit_where_subtracting_would_not(architecture: str) -> None:
    """Adding and subtracting 1e6 would round the weights away."""
    model = tiny_model(architecture)
    before = weights_of(model)
    for _ in range(3):
        with noise(constant(1e6), everywhere(model)).applied(model):
            pass
    assert_same(weights_of(model), before)


@pytest.mark.parametrize("failing", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("when", ["sampling", "applied"])
def test_restored_after_a_failure(failing: type[BaseException], when: str) -> None:
    model = tiny_model()
    before = weights_of(model)
    calls = 0

    def draw(weight: Tensor, positions: Tensor, *_: object) -> Tensor:
        nonlocal calls
        calls += 1
        if when == "sampling" and calls == 5:
            assert not torch.equal(next(iter(weights_of(model).values())), before[first])
            raise failing
        return torch.ones_like(positions, dtype=weight.dtype)

    first = next(iter(before))
    with pytest.raises(failing), noise(scripted(draw), everywhere(model)).applied(model):
        raise failing
    assert_same(weights_of(model), before)


def test_restored_where_a_sampler_gives_the_wrong_number_of_values() -> None:
    model = tiny_model()
    before = weights_of(model)
    count = 0

    def draw(_: Tensor, positions: Tensor, *__: object) -> Tensor:
        nonlocal count
        count += 1
        return torch.ones(positions.numel() if count < 3 else 7)

    wrong = noise(scripted(draw), some(model))
    with pytest.raises(RuntimeError), wrong.applied(model):
        pass
    assert_same(weights_of(model), before)


def test_every_application_draws_anew() -> None:
    model = tiny_model()
    source = noise(uniform(0.1), some(model))
    first, second = differences(model, source), differences(model, source)
    for name in first:
        assert not torch.equal(first[name], second[name])


def test_kept_noise_lasts_an_epoch() -> None:
    model = tiny_model()
    source = noise(uniform(0.1), some(model), keep=True)
    first = differences(model, source)
    assert_same(differences(model, source), first)
    source.new_epoch()
    second = differences(model, source)
    assert not any(torch.equal(first[name], second[name]) for name in first)
    assert_same(differences(model, source), second)


@architectures
@pytest.mark.parametrize("kind", ["attention", "mlp", "all"])
def test_only_the_asked_kind_of_layer_is_shaken(architecture: str, kind: str) -> None:
    model = tiny_model(architecture)
    added = differences(model, noise(uniform(0.1), some(model), layers=kind))
    shaken = {name for name, difference in added.items() if difference.any()}
    assert shaken == {n for n, x in model.layers.items() if kind in ("all", x.kind)}
    assert shaken


def test_layers_without_outliers_are_left_alone() -> None:
    model = tiny_model()
    first, second, *_ = model.layers
    shape = tuple(model.layers[first].weight.shape)
    chosen = {first: Outliers(shape, torch.tensor([3])), second: Outliers(shape, torch.tensor([]))}
    added = differences(model, noise(constant(1.0), chosen))
    assert {n: int(d.count_nonzero()) for n, d in added.items() if d.any()} == {first: 1}


@architectures
def test_samplers_see_the_effective_weight_but_the_base_is_shaken(architecture: str) -> None:
    model = tiny_model(architecture)
    seen = []

    def draw(weight: Tensor, positions: Tensor, *_: object) -> Tensor:
        seen.append(weight.clone())
        return torch.ones_like(positions, dtype=weight.dtype)

    before = weights_of(model)
    with attached(model, list(before), rank=2, alpha=4, dropout=0, seed=0) as (wrapped, adapted):
        with torch.no_grad():
            for parameter in trainable(wrapped):
                parameter.normal_(generator=torch.Generator().manual_seed(1))
        effective = [layer.weight.clone() for layer in adapted.layers.values()]
        with noise(scripted(draw), everywhere(model)).applied(adapted):
            shaken = weights_of(model)
    assert all(torch.equal(*pair) for pair in zip(seen, effective, strict=True))
    assert not any(torch.equal(*pair) for pair in zip(seen, before.values(), strict=True))
    assert_same(shaken, {name: weight + 1.0 for name, weight in before.items()})
    assert_same(weights_of(model), before)


def test_each_application_imitates_one_of_the_grids() -> None:
    model = tiny_model()
    seen: list[Grid] = []

    def draw(weight: Tensor, positions: Tensor, grid: Grid, _: torch.Generator) -> Tensor:
        seen.append(grid)
        return torch.zeros_like(positions, dtype=weight.dtype)

    grids = [Grid(3, 16), Grid(4, 16)]
    source = noise(scripted(draw), some(model), grids=grids)
    for _ in range(40):
        with source.applied(model):
            pass
    per_application = [set(seen[i : i + 14]) for i in range(0, len(seen), 14)]
    assert all(len(grids) == 1 for grids in per_application)
    chosen = [next(iter(grids)) for grids in per_application]
    assert 8 <= chosen.count(grids[0]) <= 32
    assert set(chosen) == set(grids)


class Bound(Sampler):
    """Binds to each matrix and reports with what."""

    name: ClassVar[str] = "bound"
    needs_sensitivity: ClassVar[bool] = True
    seen: ClassVar[list[tuple[Tensor, Tensor | None]]] = []

    def bind(self, weight: Tensor, sensitivity: Tensor | None) -> Draw:
        self.seen.append((weight.clone(), sensitivity))
        return constant(float(len(self.seen)))

    def sample(self, *_: object) -> Tensor:
        raise AssertionError("the bound object must draw")


def test_samplers_are_bound_once_to_each_matrix() -> None:
    model = tiny_model()
    Bound.seen.clear()
    scores = {name: torch.full_like(w, i) for i, (name, w) in enumerate(weights_of(model).items())}
    source = noise(Bound(), everywhere(model), sensitivities=scores)
    first = differences(model, source)
    source.new_epoch()
    second = differences(model, source)
    assert len(Bound.seen) == len(model.layers)
    for index, (name, layer) in enumerate(model.layers.items()):
        weight, sensitivity = Bound.seen[index]
        assert torch.equal(weight, layer.weight)
        assert sensitivity is scores[name]
        torch.testing.assert_close(first[name], torch.full_like(weight, index + 1.0))
        torch.testing.assert_close(second[name], first[name])


class OneOfTwo(Sampler):
    """Draws its size for each step, and counts what is bound."""

    name: ClassVar[str] = "one-of-two"
    sizes: tuple[float, ...] = (1.0, 2.0)
    bound: ClassVar[list[tuple[float, ...]]] = []

    def each_step(self, generator: torch.Generator) -> Sampler:
        index = int(torch.randint(2, (), generator=generator))
        return OneOfTwo(sizes=(self.sizes[index],))

    def bind(self, weight: Tensor, sensitivity: Tensor | None) -> Draw:
        self.bound.append(self.sizes)
        return constant(self.sizes[0])

    def sample(self, *_: object) -> Tensor:
        raise AssertionError("the bound object must draw")


def test_a_sampler_may_choose_for_all_matrices_of_a_step() -> None:
    model = tiny_model()
    OneOfTwo.bound.clear()
    source = noise(OneOfTwo(), everywhere(model))
    steps = [differences(model, source) for _ in range(20)]
    sizes = [{round(float(x), 4) for d in step.values() for x in d.flatten()} for step in steps]
    assert all(len(found) == 1 for found in sizes)
    assert {next(iter(found)) for found in sizes} == {1.0, 2.0}
    assert Counter(OneOfTwo.bound) == {(1.0,): len(model.layers), (2.0,): len(model.layers)}
