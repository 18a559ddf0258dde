"""Objectives that break a promise are found."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import pytest
import torch
from counting import fresh
from torch import Tensor, nn

from npft.contracts import Loss, Objective
from npft.losses import divergence
from npft.testing import check_objective


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
        return super().loss(*given) + fresh()


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


class LossElsewhere(GoodObjective):
    def loss(self, *given: Any) -> Tensor:
        return super().loss(*given).to("meta")


class OnlyFloat(GoodObjective):
    def loss(self, student: Any, *rest: Any) -> Tensor:
        largest = student.logits.new_tensor(torch.finfo(torch.float32).max)  # bfloat16: infinite
        return student.logits.square().mean() / largest * largest


class OnlyBatches(GoodObjective):
    def loss(self, student: Any, *rest: Any) -> Tensor:
        means = student.logits.mean(dim=(1, 2))
        return (means - means.mean()).square().sum() / (len(means) - 1)


class Adding(GoodObjective):
    averages_over_windows: ClassVar[bool] = True

    def loss(self, student: Any, *rest: Any) -> Tensor:
        return student.logits.square().sum()


class Replayable(GoodObjective):
    replayable: ClassVar[bool] = True


class Looking(Replayable):
    def loss(self, *given: Any) -> Tensor:
        loss = super().loss(*given)
        return loss if loss > 0 else -loss


class Selecting(Replayable):
    def loss(self, student: Any, *rest: Any) -> Tensor:
        return student.logits[student.logits > 0].float().mean()


class Filling(Replayable):
    def loss(self, student: Any, *rest: Any) -> Tensor:
        logits = student.logits.clone()
        logits[logits < 0] = 0.0  # a mask as an index, but of one value: nobody counts
        return logits.float().mean()


class Growing(Remembering):
    replayable: ClassVar[bool] = True


class Overwriting(GoodObjective):
    def loss(self, student: Any, tokens: Tensor, original: Any | None) -> Tensor:
        assert original is not None
        original.hidden_states[-1].zero_()
        return super().loss(student, tokens, original)


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (Adding(), "averages_over_windows, but its loss is no mean"),
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
        (LossElsewhere(), "gives a loss on meta, not on cpu"),
        (OnlyFloat(), "must return a finite scalar"),
        (OnlyBatches(), "must return a finite scalar"),
        (Overwriting(), "changes a tensor that it was given"),
        (Looking(), "replayable = True, and waits for the device in aten._local_scalar_dense"),
        (Selecting(), "replayable = True, and waits for the device in aten.index"),
        (Growing(), "is replayable, but its loss changes by epoch 1"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Objective) else "",
)
def test_broken_objectives_are_found(objective: Objective, message: str) -> None:
    with pytest.raises(AssertionError, match=f"{type(objective).__name__} .*{message}"):
        check_objective(objective)


def test_good_ones_pass() -> None:
    check_objective(GoodObjective())
    check_objective(Replayable())
    check_objective(Filling())
    check_objective(Remembering())


class Greedy(GoodObjective):
    needs_original: ClassVar[bool] = False
    needs_hidden_states: ClassVar[bool] = False

    def loss(self, student: Any, tokens: Tensor, original: Any | None) -> Tensor:
        assert original is None
        assert student.hidden_states is None
        return student.logits.square().mean()


def test_what_is_not_asked_for_is_not_given() -> None:
    check_objective(Greedy())
