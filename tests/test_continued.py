"""A tuning that was left after any epoch ends like one that was not, bit for bit."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import pytest
import torch
from recording import everywhere, some, uniform
from tiny import tiny_model, tiny_tokens
from torch import Tensor

from npft.adapters import Adapter
from npft.artifacts import LanguageModel, Outliers
from npft.contracts import Draw, Loss, Sampler
from npft.grid import Grid
from npft.objectives import KL, CrossEntropy
from npft.outliers import select
from npft.samplers import Residual, StepUniform
from npft.scorers import Fisher
from npft.tuning import State, Tuning, control, tune


class Stopped(BaseException):
    """As sudden as Ctrl-C."""


class Memory:
    """A checkpoint that goes through what a file can hold, and stops the training if asked to."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.saved: list[tuple[dict[str, Tensor], str]] = []
        self.stop_after = stop_after

    def load(self) -> State | None:
        if not self.saved:
            return None
        tensors, numbers = self.saved[-1]
        return State(
            {name: values.clone() for name, values in tensors.items()}, json.loads(numbers)
        )

    def save(self, state: State) -> None:
        copies = {name: values.detach().cpu().clone() for name, values in state.tensors.items()}
        self.saved.append((copies, json.dumps(state.numbers, allow_nan=False)))
        if len(self.saved) == self.stop_after:
            raise Stopped


def same(one: Adapter, other: Adapter) -> bool:
    return (
        one.losses == other.losses
        and one.weights.keys() == other.weights.keys()
        and all(torch.equal(one.weights[name], other.weights[name]) for name in one.weights)
    )


def settings(**changes: Any) -> Tuning:
    small = {"epochs": 3, "batch_size": 2, "rank": 2, "alpha": 4, "lr": 1e-2}
    return Tuning(**{**small, **changes})


def stopped_and_continued(train: Callable[[Memory], Adapter], after: int) -> Adapter:
    memory = Memory(stop_after=after)
    with pytest.raises(Stopped):
        train(memory)
    memory.stop_after = None
    torch.manual_seed(after)  # another process has other global states
    return train(memory)


@pytest.mark.parametrize(
    ("options", "after"),
    [
        ({}, 1),
        ({"dropout": 0.3, "weight_decay": 0.1}, 2),
        ({"terms": "both", "balance": False, "rescore": True}, 1),
        ({"draw": "epoch", "restart": True, "warmup": 0.5}, 2),
    ],
    ids=str,
)
@pytest.mark.parametrize("sampler", [StepUniform(), Residual()], ids=lambda s: s.name)
def test_a_tuning_goes_on_as_if_nothing_had_been(
    sampler: Sampler, options: dict[str, Any], after: int
) -> None:
    model = tiny_model()
    scores = dict(Fisher().score(model, [tiny_tokens()]))

    def rescore(adapted: LanguageModel) -> Mapping[str, Outliers]:
        return select(Fisher().score(adapted, [tiny_tokens()]), 0.2)

    def train(memory: Memory | None) -> Adapter:
        return tune(
            model, tiny_tokens(), everywhere(model), sampler, KL(), settings(**options),
            sensitivities=scores, rescore=rescore, checkpoint=memory,
        )  # fmt: skip

    assert same(stopped_and_continued(train, after), train(None))


def test_codebooks_are_part_of_the_state() -> None:
    """Searched anew in the middle, they would be others, and so would the adapter."""
    model = tiny_model()
    scores = dict(Fisher().score(model, [tiny_tokens()]))
    sampler = Residual(quantizers=("kmeans",))

    def train(memory: Memory | None) -> Adapter:
        return tune(
            model, tiny_tokens(), everywhere(model), sampler, KL(),
            settings(lr=0.1, noise_bits=(3,)), sensitivities=scores, checkpoint=memory,
        )  # fmt: skip

    memory = Memory(stop_after=2)
    with pytest.raises(Stopped):
        train(memory)
    tensors, numbers = memory.saved[-1]
    books = [name for name in tensors if name.startswith("noise.") and "residual" in name]
    assert len(books) == len(model.layers)
    forgetful = Memory()
    forgetful.saved = [({n: v for n, v in tensors.items() if n not in books}, numbers)]
    whole = train(None)
    assert not same(train(forgetful), whole)
    memory.stop_after = None
    assert same(train(memory), whole)


def test_a_control_goes_on_as_if_nothing_had_been() -> None:
    model = tiny_model()

    def train(memory: Memory | None) -> Adapter:
        options = settings(dropout=0.3)
        return control(model, tiny_tokens(), CrossEntropy(), options, checkpoint=memory)

    assert same(stopped_and_continued(train, 1), train(None))


def test_one_state_is_kept_after_each_epoch_but_the_last() -> None:
    model, memory = tiny_model(), Memory()
    control(model, tiny_tokens(windows=5), CrossEntropy(), settings(), checkpoint=memory)
    lengths = [len(json.loads(numbers)["losses"]) for _, numbers in memory.saved]
    assert lengths == [3, 6]


class Counting(Sampler):
    """Noise that depends on how often it was drawn; ``tells`` says so to a checkpoint."""

    name: ClassVar[str] = "counting"
    tells: bool

    def bind(self, weight: Tensor, sensitivity: Tensor | None) -> Draw:
        return Telling() if self.tells else Silent()

    def sample(
        self, weight: Tensor, positions: Tensor, grid: Grid, generator: torch.Generator
    ) -> Tensor:
        raise NotImplementedError


class Silent:
    def __init__(self) -> None:
        self.drawn = torch.zeros(())

    def sample(
        self, weight: Tensor, positions: Tensor, grid: Grid, generator: torch.Generator
    ) -> Tensor:
        self.drawn += 1
        return 0.01 * self.drawn * torch.rand(positions.shape, generator=generator)


class Telling(Silent):
    def state(self) -> dict[str, Tensor]:
        return {"drawn": self.drawn}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.drawn = state["drawn"].clone()


@pytest.mark.parametrize("tells", [True, False])
def test_what_another_sampler_remembers(tells: bool) -> None:
    """One that cannot tell is never continued, so that its tuning is right, if late."""
    model = tiny_model()

    def train(memory: Memory | None) -> Adapter:
        return tune(
            model, tiny_tokens(), some(model), Counting(tells=tells), KL(), settings(),
            checkpoint=memory,
        )  # fmt: skip

    memory = Memory()
    whole = train(memory)
    assert len(memory.saved) == (2 if tells else 0)
    if tells:
        assert same(stopped_and_continued(train, 2), whole)


class Growing(KL):
    """A loss that grows with every call and epoch."""

    name: ClassVar[str] = "growing"

    def begin(self, seed: int) -> Loss:
        return Grown()


class Grown:
    def __init__(self) -> None:
        self.calls = torch.zeros(())
        self.epochs: list[int] = []

    def new_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)

    def loss(self, student: Any, tokens: Tensor, original: Any) -> Tensor:
        self.calls += 1
        factor = self.calls + 10 * sum(self.epochs)
        return factor * KL().loss(student, tokens, original)

    def state_dict(self) -> dict[str, Tensor]:
        return {"calls": self.calls, "epochs": torch.tensor(self.epochs)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.calls = state["calls"].clone()
        self.epochs = [int(epoch) for epoch in state["epochs"]]


def test_what_an_objective_remembers() -> None:
    """Each tuning begins its own, which is told of every epoch and taken up again."""
    model = tiny_model()

    def train(memory: Memory | None) -> Adapter:
        return tune(
            model, tiny_tokens(), some(model), uniform(0.1), Growing(),
            settings(balance=False), checkpoint=memory,
        )  # fmt: skip

    memory = Memory()
    whole = train(memory)
    assert same(train(None), whole)
    assert memory.saved[-1][0]["objective.epochs"].tolist() == [1]
    assert same(stopped_and_continued(train, 2), whole)


def test_a_state_is_the_same_whoever_listens() -> None:
    """Keeping states changes nothing."""
    model = tiny_model()
    one, other = (
        tune(model, tiny_tokens(), some(model), uniform(0.1), KL(), settings(), checkpoint=memory)
        for memory in (None, Memory())
    )
    assert same(one, other)
