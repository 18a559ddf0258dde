"""The contract checks find what they say they find."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from npft.artifacts import LanguageModel, PackedWeight, QuantizedModel
from npft.contracts import Draw, Loss, Objective, Quantizer, Sampler, Scorer
from npft.grid import Grid
from npft.losses import divergence
from npft.quantizers import RTN
from npft.testing import check_objective, check_quantizer, check_sampler, check_scorer


class GoodScorer(Scorer):
    name: ClassVar[str] = "test"

    def score(
        self, model: LanguageModel, batches: Iterable[Tensor]
    ) -> Iterator[tuple[str, Tensor]]:
        for name, layer in model.layers.items():
            yield name, self.one(model, layer.weight)

    def one(self, model: LanguageModel, weight: Tensor) -> Tensor:
        return weight.square()


class Unordered(GoodScorer):
    def score(self, model: LanguageModel, batches: Iterable[Tensor]) -> Iterator[Any]:
        for name, layer in reversed(model.layers.items()):
            yield name, self.one(model, layer.weight)


class Forgetful(GoodScorer):
    def score(self, model: LanguageModel, batches: Iterable[Tensor]) -> Iterator[Any]:
        scores = super().score(model, batches)
        next(scores)
        return scores


class Hoarding(GoodScorer):
    def score(self, model: LanguageModel, batches: Iterable[Tensor]) -> Iterator[Any]:
        yield from list(super().score(model, batches))


class Transposed(GoodScorer):
    def one(self, model: LanguageModel, weight: Tensor) -> Tensor:
        return weight.T.square()


class Doubled(GoodScorer):
    def one(self, model: LanguageModel, weight: Tensor) -> Tensor:
        return weight.square().double()


class Signed(GoodScorer):
    def one(self, model: LanguageModel, weight: Tensor) -> Tensor:
        return weight.clone()


class NotANumber(GoodScorer):
    def one(self, model: LanguageModel, weight: Tensor) -> Tensor:
        return torch.full_like(weight, torch.nan)


class Destructive(GoodScorer):
    def one(self, model: LanguageModel, weight: Tensor) -> Tensor:
        return weight.square_().clone()


class Gambling(GoodScorer):
    def one(self, model: LanguageModel, weight: Tensor) -> Tensor:
        return torch.rand(weight.shape, generator=torch.Generator().manual_seed(_fresh()))


class Global(GoodScorer):
    def one(self, model: LanguageModel, weight: Tensor) -> Tensor:
        return torch.rand(weight.shape)


class Hooked(GoodScorer):
    def one(self, model: LanguageModel, weight: Tensor) -> Tensor:
        model.network.register_forward_hook(lambda *_: None)
        return weight.square()


class Training(GoodScorer):
    def one(self, model: LanguageModel, weight: Tensor) -> Tensor:
        model.network.train()
        return weight.square()


class Gradients(GoodScorer):
    def one(self, model: LanguageModel, weight: Tensor) -> Tensor:
        model.network.requires_grad_()
        return weight.square()


def _fresh() -> int:
    _fresh.count = getattr(_fresh, "count", 0) + 1  # type: ignore[attr-defined]
    return int(_fresh.count)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("scorer", "message"),
    [
        (Unordered(), "every layer once, in order"),
        (Forgetful(), "every layer once, in order"),
        (Hoarding(), "keeps tensors that it has yielded"),
        (Transposed(), r"give float32 of the weight's shape \(out, in\)"),
        (Doubled(), "torch.float64 for .*: give float32"),
        (Signed(), "negative, NaN or infinite scores"),
        (NotANumber(), "negative, NaN or infinite scores"),
        (Destructive(), "changes the weights of the model"),
        (Gambling(), "other scores for the same model"),
        (Global(), "touches a global random state"),
        (Hooked(), "leaves hooks, gradients or another mode"),
        (Training(), "leaves hooks, gradients or another mode"),
        (Gradients(), "leaves hooks, gradients or another mode"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Scorer) else "",
)
def test_broken_scorers_are_found(scorer: Scorer, message: str) -> None:
    with pytest.raises(AssertionError, match=f"{type(scorer).__name__} .*{message}"):
        check_scorer(scorer)


class GoodSampler(Sampler):
    name: ClassVar[str] = "test"

    def sample(
        self, weight: Tensor, positions: Tensor, grid: Grid, generator: torch.Generator
    ) -> Tensor:
        return torch.randn(positions.shape, generator=generator, dtype=weight.dtype)


class Whole(GoodSampler):
    def sample(self, weight: Tensor, *rest: Any) -> Tensor:
        return torch.zeros_like(weight)


class Widening(GoodSampler):
    def sample(self, *given: Any) -> Tensor:
        return super().sample(*given).float()


class Biased(GoodSampler):
    def sample(self, *given: Any) -> Tensor:
        return super().sample(*given) + 0.2


class Dividing(GoodSampler):
    def sample(self, weight: Tensor, positions: Tensor, *rest: Any) -> Tensor:
        return torch.take(weight / weight, positions)


class GlobalNoise(GoodSampler):
    def sample(self, weight: Tensor, positions: Tensor, *rest: Any) -> Tensor:
        return torch.randn(positions.shape, dtype=weight.dtype)


class NumpyNoise(GoodSampler):
    def sample(self, weight: Tensor, positions: Tensor, *rest: Any) -> Tensor:
        return torch.from_numpy(np.random.randn(*positions.shape)).to(weight.dtype)


class PythonNoise(GoodSampler):
    def sample(self, weight: Tensor, positions: Tensor, *rest: Any) -> Tensor:
        return torch.full(positions.shape, random.gauss(0, 1), dtype=weight.dtype)


class OwnNoise(GoodSampler):
    def sample(self, weight: Tensor, positions: Tensor, grid: Grid, *rest: Any) -> Tensor:
        return super().sample(weight, positions, grid, torch.Generator().manual_seed(_fresh()))


class Adding(GoodSampler):
    def sample(self, weight: Tensor, positions: Tensor, *rest: Any) -> Tensor:
        noise = super().sample(weight, positions, *rest)
        weight.put_(positions, noise)
        return noise


class BadlyBound(GoodSampler):
    def bind(self, weight: Tensor, sensitivity: Tensor | None) -> Draw:
        return Biased()


@pytest.mark.parametrize(
    ("sampler", "message"),
    [
        (Whole(), "one value per position"),
        (Widening(), "in the weight's dtype"),
        (Biased(), "gives noise of mean"),
        (Dividing(), "NaN or infinite noise"),
        (GlobalNoise(), "touches a global random state"),
        (NumpyNoise(), "touches a global random state"),
        (PythonNoise(), "touches a global random state"),
        (OwnNoise(), "draws from another source than its generator"),
        (Adding(), "changes a tensor that it was given"),
        (BadlyBound(), "gives noise of mean"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Sampler) else "",
)
def test_broken_samplers_are_found(sampler: Sampler, message: str) -> None:
    with pytest.raises(AssertionError, match=f"{type(sampler).__name__} .*{message}"):
        check_sampler(sampler)


class GoodObjective(Objective):
    name: ClassVar[str] = "test"
    needs_original: ClassVar[bool] = True
    needs_hidden_states: ClassVar[bool] = True

    def loss(self, student: Any, tokens: Tensor, original: Any | None) -> Tensor:
        assert original is not None
        return divergence(student.hidden_states[-1], original.hidden_states[-1])


class PerToken(GoodObjective):
    def loss(self, student: Any, *rest: Any) -> Tensor:
        return student.logits.square().sum(-1)


class Number(GoodObjective):
    def loss(self, student: Any, *rest: Any) -> Any:
        return 1.0


class Infinite(GoodObjective):
    def loss(self, student: Any, *rest: Any) -> Tensor:
        return student.logits.sum() / 0


class Detached(GoodObjective):
    def loss(self, *given: Any) -> Tensor:
        return super().loss(*given).detach()


class Flat(GoodObjective):
    def loss(self, student: Any, *rest: Any) -> Tensor:
        return 0 * student.logits.sum()


class Unmasking(GoodObjective):
    def loss(self, student: Any, tokens: Tensor, original: Any | None) -> Tensor:
        tokens[:, 0] = 0
        return super().loss(student, tokens, original)


class Dropping(GoodObjective):
    def loss(self, *given: Any) -> Tensor:
        return nn.functional.dropout(super().loss(*given).expand(100), 0.5).mean()


class Restless(GoodObjective):
    def loss(self, *given: Any) -> Tensor:
        return super().loss(*given) + _fresh()


class Remembering(GoodObjective):
    """The loss grows with every call; what it began remembers how often it was called."""

    def begin(self, seed: int) -> Loss:
        return Begun(self)


class Begun(Loss):
    calls: float = 0

    def __init__(self, objective: GoodObjective) -> None:
        self.objective = objective

    def new_epoch(self, epoch: int) -> None: ...

    def loss(self, student: Any, tokens: Tensor, original: Any | None) -> Tensor:
        self.calls += 1
        return self.calls * self.objective.loss(student, tokens, original)

    def state_dict(self) -> dict[str, Tensor]:
        return {"calls": torch.tensor(self.calls)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.calls = int(state["calls"])


class Forgetting(GoodObjective):
    def begin(self, seed: int) -> Loss:
        class Forgetful(Begun):
            def load_state_dict(self, state: Mapping[str, Tensor]) -> None: ...

        return Forgetful(self)


class Exploding(GoodObjective):
    def begin(self, seed: int) -> Loss:
        class Explosive(Begun):
            def new_epoch(self, epoch: int) -> None:
                self.calls = math.inf if epoch == 3 else 0

        return Explosive(self)


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (PerToken(), "must return a finite scalar"),
        (Number(), "must return a finite scalar"),
        (Infinite(), "must return a finite scalar"),
        (Detached(), "has no gradient"),
        (Flat(), "has a zero, NaN or infinite gradient"),
        (Unmasking(), "changes a tensor that it was given"),
        (Dropping(), "touches a global random state"),
        (Restless(), "another loss for the same outputs"),
        (Forgetting(), "cannot be repeated: epoch 1 differs"),
        (Exploding(), "in epoch 3: not finite"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Objective) else "",
)
def test_broken_objectives_are_found(objective: Objective, message: str) -> None:
    with pytest.raises(AssertionError, match=f"{type(objective).__name__} .*{message}"):
        check_objective(objective)


class Partial(RTN):
    def quantize(self, model: LanguageModel, *given: Any) -> QuantizedModel:
        done = super().quantize(model, *given)
        first = next(iter(done.weights))
        return replace(done, weights={n: w for n, w in done.weights.items() if n != first})


class Wide(RTN):
    def quantize_weight(self, weight: Tensor, sensitivity: Tensor | None) -> PackedWeight:
        packed: Any = super().quantize_weight(weight, sensitivity)
        return replace(packed, codes=packed.codes.int())


class Overflowing(RTN):
    def quantize_weight(self, weight: Tensor, sensitivity: Tensor | None) -> PackedWeight:
        return RTN(bits=self.bits + 1).quantize_weight(weight, sensitivity)


class Pretending(RTN):
    def quantize(self, model: LanguageModel, *given: Any) -> QuantizedModel:
        return replace(super().quantize(model, *given), model=model.copy())


class InPlace(RTN):
    def quantize(self, model: LanguageModel, *given: Any) -> QuantizedModel:
        done = super().quantize(model, *given)
        for name, layer in model.layers.items():
            layer.weight.copy_(done.weights[name].dequantize())
        return replace(done, model=model)


class Sparse(RTN):
    def quantize(self, *given: Any) -> QuantizedModel:
        return replace(super().quantize(*given), bits=2)


class Stochastic(RTN):
    def quantize_weight(self, weight: Tensor, sensitivity: Tensor | None) -> PackedWeight:
        noise = torch.rand(weight.shape, generator=torch.Generator().manual_seed(_fresh()))
        return super().quantize_weight(weight + 0.1 * noise, sensitivity)


@pytest.mark.parametrize(
    ("quantizer", "message"),
    [
        (Partial(), "a packed weight for every layer"),
        (Wide(), "codes that are not uint8"),
        (Overflowing(), r"below 2\*\*bits"),
        (Pretending(), "other weights in the runnable model"),
        (InPlace(), "changes the weights of the model"),
        (Sparse(), "average bits and 2 bits for 4"),
        (Stochastic(), "other codes for the same model"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Quantizer) else "",
)
def test_broken_quantizers_are_found(quantizer: Quantizer, message: str) -> None:
    with pytest.raises(AssertionError, match=f"{type(quantizer).__name__} .*{message}"):
        check_quantizer(quantizer)


def test_good_ones_pass() -> None:
    check_scorer(GoodScorer())
    check_sampler(GoodSampler())
    check_objective(GoodObjective())
    check_objective(Remembering())
    check_quantizer(RTN(bits=3, group_size=24))


@pytest.mark.parametrize("check", [check_scorer, check_sampler, check_objective, check_quantizer])
def test_another_kind_of_plugin_is_no_such_plugin(check: Any) -> None:
    wrong = GoodSampler() if check is check_scorer else GoodScorer()
    with pytest.raises(AssertionError, match=f"{type(wrong).__name__} is no "):
        check(wrong)


def test_a_plugin_needs_a_name() -> None:
    class Nameless(Scorer):
        def score(self, model: LanguageModel, batches: Iterable[Tensor]) -> Iterator[Any]:
            return iter(())

    with pytest.raises(AssertionError, match="Nameless has no name"):
        check_scorer(Nameless())
