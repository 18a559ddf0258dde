"""Scorers that break a promise are found."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

import pytest
import torch
from counting import fresh
from torch import Tensor

from npft.artifacts import LanguageModel
from npft.contracts import Scorer
from npft.testing import check_scorer


class GoodScorer(Scorer):
    name: ClassVar[str] = "test"

    def score(
        self, model: LanguageModel, batches: Iterable[Tensor]
    ) -> Iterator[tuple[str, Tensor]]:
        for name, layer in model.layers.items():
            yield name, self.one(model, layer.weight)

    def one(self, model: LanguageModel, weight: Tensor) -> Tensor:
        return weight.float().square()


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
        return torch.rand(weight.shape, generator=torch.Generator().manual_seed(fresh()))


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


class Elsewhere(GoodScorer):
    def one(self, model: LanguageModel, weight: Tensor) -> Tensor:
        return weight.float().square().to("meta")


class Half(GoodScorer):
    """Right on models in float32 alone."""

    def one(self, model: LanguageModel, weight: Tensor) -> Tensor:
        return weight.square()


class Aliasing(GoodScorer):
    def one(self, model: LanguageModel, weight: Tensor) -> Tensor:
        return weight.abs_() if (weight >= 0).all() else weight


class Growing(GoodScorer):
    def one(self, model: LanguageModel, weight: Tensor) -> Tensor:
        return weight.float().square().requires_grad_()


class Inventing(GoodScorer):
    def score(self, model: LanguageModel, batches: Iterable[Tensor]) -> Iterator[Any]:
        yield from super().score(model, batches)
        yield "lm_head", torch.ones(1)


class Summing(GoodScorer):
    sums_over_windows: ClassVar[bool] = True


class Editing(GoodScorer):
    def score(self, model: LanguageModel, batches: Iterable[Tensor]) -> Iterator[Any]:
        for batch in batches:
            batch.zero_()
        yield from super().score(model, batches)


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
        (Elsewhere(), "yields scores on meta for .*, which is on cpu"),
        (Half(), "torch.bfloat16 for .*: give float32"),
        (Aliasing(), "the memory of .* itself: give a copy"),
        (Growing(), "yields scores of .* with a gradient"),
        (Inventing(), "yields 'lm_head', which is no layer"),
        (Summing(), "sums_over_windows, but not in"),
        (Editing(), "changes a tensor that it was given"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Scorer) else "",
)
def test_broken_scorers_are_found(scorer: Scorer, message: str) -> None:
    with pytest.raises(AssertionError, match=f"{type(scorer).__name__} .*{message}"):
        check_scorer(scorer)


def test_a_good_one_passes() -> None:
    check_scorer(GoodScorer())
