"""In a step of tuning the host never waits for the device."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from recording import everywhere, some
from tiny import tiny_model, tiny_tokens
from torch import Tensor

from npft.attention import unmasked
from npft.contracts import Objective, Sampler
from npft.objectives import KL, CrossEntropy
from npft.samplers import ChannelUniform, Residual, StepUniform
from npft.testing.waiting import Waits
from npft.tuning import Tuning, control, training, tune
from npft.tuning.late import Late

STEPS, FIRST = 10, 4  # codebooks are searched in the first steps, which may wait


class WaitsOfSteps(Waits):
    """Leaves out the choices that are drawn on the CPU whatever the device: single numbers."""

    def __init__(self) -> None:
        super().__init__()
        self._drawn: list[Tensor] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        reads = function is torch.ops.aten._local_scalar_dense.default
        if reads and any(args[0].data_ptr() == drawn.data_ptr() for drawn in self._drawn):
            return function(*args)
        result = super().__torch_dispatch__(function, types, args, kwargs)
        draws = function.overloadpacket in (torch.ops.aten.rand, torch.ops.aten.randint)
        if draws and result.dim() == 0:
            self._drawn.append(result)  # held, so that no other is put in its place
        return result


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What each step after the first ones waits for, if it is done as on a GPU."""
    found: list[list[str]] = []
    step = training.Training.step

    def watched(self: training.Training, tokens: Tensor) -> None:
        if self.taken < FIRST:
            step(self, tokens)
            return
        with WaitsOfSteps() as waits:
            step(self, tokens)
        found.append(waits.found)

    monkeypatch.setattr(training.Training, "step", watched)
    monkeypatch.setattr(training, "Late", lambda _: Late(torch.device("meta")))
    return found


def settings(**changes: Any) -> Tuning:
    return Tuning(epochs=1, batch_size=1, rank=2, alpha=4, **{"noise_bits": (4,), **changes})


@pytest.mark.parametrize("objective", [KL(), CrossEntropy()], ids=lambda plugin: plugin.name)
@pytest.mark.parametrize(
    "sampler",
    [
        Residual(quantizers=("rtn",)),
        Residual(quantizers=("kmeans",)),
        StepUniform(),
        ChannelUniform(),
        ChannelUniform(span="outliers"),
    ],
    ids=str,
)
@pytest.mark.parametrize("terms", ["one", "both"])
def test_no_step_waits(
    waits: list[list[str]], objective: Objective, sampler: Sampler, terms: str
) -> None:
    model = tiny_model()
    outliers = everywhere(model) if terms == "one" else some(model)
    weights = {name: torch.ones(layer.shape) for name, layer in model.layers.items()}
    with unmasked(model.network):
        tune(
            model, tiny_tokens(STEPS), outliers, sampler, objective, settings(terms=terms),
            sensitivities=weights,
        )  # fmt: skip
    assert waits == [[]] * (STEPS - FIRST)


def test_choices_among_kinds_of_noise_are_drawn_on_the_host(waits: list[list[str]]) -> None:
    model = tiny_model()
    weights = {name: torch.ones(layer.shape) for name, layer in model.layers.items()}
    chosen = settings(norms=True, clip=0.01, noise_bits=(4, 3))
    with unmasked(model.network):
        tune(
            model, tiny_tokens(40), everywhere(model), Residual(), KL(), chosen,
            sensitivities=weights,
        )  # fmt: skip
    assert waits[-20:] == [[]] * 20
    assert any(waits)  # when a codebook was searched


def test_the_control_does_not_wait_either(waits: list[list[str]]) -> None:
    model = tiny_model("GPT2")
    with unmasked(model.network):
        control(model, tiny_tokens(STEPS), CrossEntropy(), settings())
    assert waits == [[]] * (STEPS - FIRST)


def test_it_would_be_seen(waits: list[list[str]]) -> None:
    """transformers' own way with masks reads from the device in each pass."""
    control(tiny_model(), tiny_tokens(STEPS), CrossEntropy(), settings())
    assert all(len(found) == 1 for found in waits)
