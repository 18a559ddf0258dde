"""Samplers that break a promise are found."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from counting import fresh
from pydantic import Field
from torch import Tensor

from npft.contracts import Draw, Sampler
from npft.grid import Grid
from npft.testing import check_sampler


class GoodSampler(Sampler):
    name: ClassVar[str] = "test"

    def sample(
        self, weight: Tensor, positions: Tensor, grid: Grid, generator: torch.Generator
    ) -> Tensor:
        return torch.randn(
            positions.shape, generator=generator, dtype=weight.dtype, device=weight.device
        )


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
        return super().sample(weight, positions, grid, torch.Generator().manual_seed(fresh()))


class Adding(GoodSampler):
    def sample(self, weight: Tensor, positions: Tensor, *rest: Any) -> Tensor:
        noise = super().sample(weight, positions, *rest)
        weight.put_(positions, noise)
        return noise


class BadlyBound(GoodSampler):
    def bind(self, weight: Tensor, sensitivity: Tensor | None) -> Draw:
        return Biased()


class NoiseElsewhere(GoodSampler):
    def sample(self, weight: Tensor, positions: Tensor, *rest: Any) -> Tensor:
        return super().sample(weight, positions, *rest).to("meta")


class Stepless(GoodSampler):
    def each_step(self, generator: torch.Generator) -> Any:
        return None


class StepOfItsOwn(GoodSampler):
    sign: int = 1

    def each_step(self, generator: torch.Generator) -> Sampler:
        return self.model_copy(update={"sign": 1 if fresh() % 2 else -1})

    def sample(self, *given: Any) -> Tensor:
        return self.sign * super().sample(*given)


class GlobalStep(GoodSampler):
    def each_step(self, generator: torch.Generator) -> Sampler:
        torch.rand(())
        return self


class Tiring(GoodSampler):
    """Right when first asked, and not again."""

    def bind(self, weight: Tensor, sensitivity: Tensor | None) -> Draw:
        return _Counting()


class _Counting:
    def __init__(self) -> None:
        self._drawn = 0

    def sample(self, weight: Tensor, positions: Tensor, *rest: Any) -> Tensor:
        self._drawn += 1
        return torch.zeros(len(positions) + (self._drawn > 1), dtype=weight.dtype)


class Pacing(GoodSampler):
    """Alternates between noise and its opposite, and says so."""

    def bind(self, weight: Tensor, sensitivity: Tensor | None) -> Draw:
        return _Pace(self)


class _Pace:
    def __init__(self, sampler: GoodSampler) -> None:
        self._sampler = sampler
        self._sign = 1.0

    def sample(self, *given: Any) -> Tensor:
        self._sign = -self._sign
        return self._sign * self._sampler.sample(*given)

    def state(self) -> dict[str, Tensor]:
        return {"sign": torch.tensor(self._sign)}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self._sign = float(state["sign"])


class Forgetful(Pacing):
    def bind(self, weight: Tensor, sensitivity: Tensor | None) -> Draw:
        class Fresh(_Pace):
            def load_state(self, state: Mapping[str, Tensor]) -> None: ...

        return Fresh(self)


class Slashing(Pacing):
    def bind(self, weight: Tensor, sensitivity: Tensor | None) -> Draw:
        class Sliced(_Pace):
            def state(self) -> dict[str, Tensor]:
                return {"a/b": torch.tensor(1.0)}

        return Sliced(self)


class Listing(GoodSampler):
    shares: list[float] = Field([0.5])


class Demanding(GoodSampler):
    """Uses sensitivities that it did not ask for."""

    def bind(self, weight: Tensor, sensitivity: Tensor | None) -> Draw:
        assert sensitivity is not None, "no sensitivities"
        return self


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
        (NoiseElsewhere(), "gives noise on meta, not on cpu"),
        (Stepless(), "gives None for a step"),
        (StepOfItsOwn(), "draws from another source than its generator"),
        (GlobalStep(), "touches a global random state"),
        (Tiring(), "one value per position"),
        (Forgetful(), "does not go on from the state that it tells"),
        (Slashing(), "has states with a slash in a name"),
        (Listing(), "cannot be hashed"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Sampler) else "",
)
def test_broken_samplers_are_found(sampler: Sampler, message: str) -> None:
    with pytest.raises(AssertionError, match=f"{type(sampler).__name__} .*{message}"):
        check_sampler(sampler)


def test_sensitivities_go_to_those_alone_that_ask() -> None:
    with pytest.raises(AssertionError, match="no sensitivities"):
        check_sampler(Demanding())


class Asking(Demanding):
    @property
    def needs_sensitivity(self) -> bool:
        return True


@pytest.mark.parametrize("sampler", [GoodSampler(), Asking(), Pacing()], ids=repr)
def test_good_ones_pass(sampler: Sampler) -> None:
    check_sampler(sampler)
