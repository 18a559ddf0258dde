"""Options that are not validated are found, in plugins of every kind."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, Literal

import pytest
from pydantic import ConfigDict, Field, field_validator
from torch import Tensor

from npft.artifacts import LanguageModel
from npft.contracts import Plugin, Scorer
from npft.objectives import KL
from npft.quantizers import RTN
from npft.samplers import StepUniform
from npft.scorers import Magnitude
from npft.testing import (
    check_objective,
    check_plugin,
    check_quantizer,
    check_sampler,
    check_scorer,
)

CHECKS = {
    check_scorer: Magnitude(),
    check_sampler: StepUniform(),
    check_objective: KL(),
    check_quantizer: RTN(),
}


class GoodScorer(Scorer):
    """Every form of option, validated."""

    name: ClassVar[str] = "test"

    power: float = Field(1.0, gt=0, le=4)
    count: int = Field(2, ge=1, lt=9)
    share: float | None = Field(None, ge=0)
    axis: Literal["output", "input"] = "output"
    names: tuple[str, ...] = ()
    whole: bool = False

    def score(
        self, model: LanguageModel, batches: Iterable[Tensor]
    ) -> Iterator[tuple[str, Tensor]]:
        for name, layer in model.layers.items():
            yield name, layer.weight.float().abs()


class Accepting(GoodScorer):
    model_config = ConfigDict(extra="allow")


class Ignoring(GoodScorer):
    model_config = ConfigDict(extra="ignore")


class Thawed(GoodScorer):
    model_config = ConfigDict(frozen=False)


class Boundless(GoodScorer):
    model_config = ConfigDict(allow_inf_nan=True)


class Untyped(GoodScorer):
    anything: Any = None


class Clamping(GoodScorer):
    @field_validator("count", mode="before")
    @classmethod
    def _clamp(cls, count: Any) -> Any:
        return min(max(count, 1), 8) if isinstance(count, int) else count


class Crashing(GoodScorer):
    @field_validator("power", mode="before")
    @classmethod
    def _double(cls, power: Any) -> Any:
        return 2 * power / 2


class Changing(GoodScorer):
    def score(self, model: LanguageModel, batches: Iterable[Tensor]) -> Iterator[Any]:
        object.__setattr__(self, "count", 3)
        yield from super().score(model, batches)


class Drifting(GoodScorer):
    @field_validator("power")
    @classmethod
    def _double(cls, power: float) -> float:
        return power / 2


@pytest.mark.parametrize(
    ("plugin", "message"),
    [
        (Accepting(), "takes options that it does not have"),
        (Ignoring(), "takes options that it does not have"),
        (Thawed(), "lets power be set: keep frozen=True"),
        (Boundless(), "takes inf for share"),
        (Untyped(), "takes anything at all for anything"),
        (Clamping(), "takes 0 for count"),
        (Crashing(), "fails on wrong options"),
        (Changing(), "changes its own options"),
        (Drifting(power=2), "cannot be made again from its own options"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Plugin) else "",
)
def test_options_that_are_not_validated_are_found(plugin: Plugin, message: str) -> None:
    with pytest.raises(AssertionError, match=f"{type(plugin).__name__} .*{message}"):
        check_plugin(plugin)


def test_good_options_pass() -> None:
    check_plugin(GoodScorer())


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("wrong", CHECKS.values(), ids=lambda plugin: plugin.name)
def test_another_kind_of_plugin_is_no_such_plugin(check: Any, wrong: Plugin) -> None:
    if CHECKS[check] is wrong:
        check(wrong)
        return
    with pytest.raises(AssertionError, match=f"{type(wrong).__name__} is no "):
        check(wrong)


def test_a_plugin_of_no_kind_is_refused() -> None:
    with pytest.raises(AssertionError, match="Plugin is no scorer, sampler, objective, quantizer"):
        check_plugin(Plugin())


def test_a_plugin_needs_a_name() -> None:
    class Nameless(Scorer):
        def score(self, model: LanguageModel, batches: Iterable[Tensor]) -> Iterator[Any]:
            return iter(())

    with pytest.raises(AssertionError, match="Nameless has no name"):
        check_scorer(Nameless())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_no_number_option_takes_what_is_no_number(value: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        StepUniform(scale=value)
