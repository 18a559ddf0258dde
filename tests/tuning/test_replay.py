"""Passes replayed from CUDA graphs: the numbers of those that are launched anew, bit for bit.

On the CPU graphs are emulated; where there is CUDA, all is done there as well.
"""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import emulated_graphs
import pytest
import torch
from recording import everywhere, scripted, some
from test_continued import Memory, Stopped
from tiny import tiny_model, tiny_tokens
from torch import Tensor
from watching import Watching

from npft import replay
from npft.adapters import Adapter, attached
from npft.artifacts import LanguageModel, Outliers
from npft.contracts import Objective, Sampler
from npft.objectives import KL, CrossEntropy
from npft.passes import Direct, balanced
from npft.processes import ALONE, Processes
from npft.replay import Replayed, replayed
from npft.samplers import Residual, StepGaussian, StepUniform
from npft.seeding import deterministic
from npft.tuning import Tuning, control, replayable, tune

CUDA = torch.device("cuda")
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
objectives = pytest.mark.parametrize("objective", [KL(), CrossEntropy()], ids=lambda o: o.name)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)

WINDOWS = 7  # two batches of 3, and a last one of another shape


def settings(**changes: Any) -> Tuning:
    """Three epochs of three steps."""
    small = {"epochs": 3, "batch_size": 3, "rank": 4, "alpha": 8, "lr": 1e-2, "terms": "both"}
    return Tuning(**{**small, **changes})


def same(one: Adapter, other: Adapter) -> bool:
    """Losses of all steps and all weights."""
    return (
        one.losses == other.losses
        and one.weights.keys() == other.weights.keys()
        and all(torch.equal(one.weights[name], other.weights[name]) for name in one.weights)
    )


class Machine:
    """Where to work, and how often a graph was replayed there."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.replays = 0

    def model(
        self, architecture: str = "Llama", dtype: torch.dtype = torch.float32, **changes: Any
    ) -> LanguageModel:
        model = tiny_model(architecture, **changes)
        model.network.to(self.device, dtype)
        return model

    def placed(self, outliers: Mapping[str, Outliers]) -> dict[str, Outliers]:
        return {name: chosen.on(self.device) for name, chosen in outliers.items()}

    def tokens(self, *shape: int, seed: int = 0) -> Tensor:
        return tiny_tokens(*shape, seed=seed).to(self.device)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=on_gpu)])
def machine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine(torch.device(request.param))
    if request.param == "cpu":
        emulated_graphs.install(monkeypatch)
        module = sys.modules["npft.tuning.tune"]  # the package has the function by that name
        usual = module.replayable

        def as_on_gpu(_: torch.device, *rest: Any) -> bool:
            return usual(CUDA, *rest)

        monkeypatch.setattr(module, "replayable", as_on_gpu)
        monkeypatch.setattr("npft.replay._side_stream", lambda _: torch.cuda.Stream(0))
    launch = torch.cuda.CUDAGraph.replay

    def counted(graph: Any) -> None:
        made.replays += 1
        launch(graph)

    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", counted)
    return made


def both_ways(
    machine: Machine,
    options: Tuning,
    objective: Objective,
    *,
    sampler: Sampler | None = None,
    architecture: str = "Llama",
    dtype: torch.dtype = torch.float32,
    share: float = 0.1,
    rescored: bool = False,
) -> tuple[Adapter, Adapter, list[str]]:
    """The adapters with and without replay, each of a new model, and what was noted with it."""
    found: list[Adapter] = []
    shown = Watching()
    for on in (True, False):
        model = machine.model(architecture, dtype)
        before = {name: value.clone() for name, value in model.network.state_dict().items()}
        weights = {n: torch.ones(x.shape, device=machine.device) for n, x in model.layers.items()}
        chosen = machine.placed(everywhere(model) if share == 1 else some(model, share))
        seeds = iter(range(1, 9))

        def rescore(adapted: LanguageModel, seeds: Iterator[int] = seeds) -> dict[str, Outliers]:
            return machine.placed(some(adapted, share, seed=next(seeds)))

        with deterministic(True):
            found.append(
                tune(
                    model, tiny_tokens(WINDOWS, 32), chosen, sampler or StepUniform(), objective,
                    options.model_copy(update={"replay": on}), sensitivities=weights,
                    rescore=rescore if rescored else None,
                    progress=shown if on else None,
                )
            )  # fmt: skip
        after = model.network.state_dict()
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)
    return found[0], found[1], shown.notes


@objectives
@dtypes
@pytest.mark.parametrize("terms", ["one", "both"])
@pytest.mark.parametrize("share", [0.1, 1.0])
def test_every_loss_and_weight_is_the_same(
    objective: Objective, dtype: torch.dtype, terms: str, share: float, machine: Machine
) -> None:
    options = settings(terms=terms)
    ours, usual, notes = both_ways(machine, options, objective, dtype=dtype, share=share)
    assert notes == []
    whole_batches = 2 * options.epochs
    passes = objective.needs_original + (2 if terms == "both" else 1)
    assert machine.replays == whole_batches * passes
    assert same(ours, usual)
    assert any(bool(value.any()) for name, value in ours.weights.items() if "lora_B" in name)


@pytest.mark.parametrize(
    "changes",
    [
        {"balance": False},
        {"beta": 0.0},
        {"beta": 3.0, "balance": False},
        {"norms": True, "weight_decay": 0.1},
        {"restart": True, "clip": 0.01},
        {"draw": "epoch"},
        {"adapter_skip": ("q_proj", "down_proj")},
        {"batch_size": 8},
        {"batch_size": 7, "epochs": 1},
        {"batch_size": 1, "terms": "one"},
    ],
    ids=str,
)
def test_whatever_the_settings(changes: dict[str, Any], machine: Machine) -> None:
    ours, usual, notes = both_ways(machine, settings(**changes), KL(), dtype=torch.bfloat16)
    assert notes == []
    assert machine.replays
    assert same(ours, usual)


@pytest.mark.parametrize(
    "sampler",
    [Residual(quantizers=("rtn",)), StepGaussian(scale=2.0)],  # sums of others have no order
    ids=lambda sampler: str(sampler),
)
def test_whatever_the_noise(sampler: Sampler, machine: Machine) -> None:
    ours, usual, notes = both_ways(machine, settings(), KL(), sampler=sampler, share=1.0)
    assert notes == []
    assert machine.replays
    assert same(ours, usual)


@objectives
@pytest.mark.parametrize("architecture", ["GPT2", "OPT", "Mistral", "GPTNeoX", "Gemma"])
def test_whatever_the_architecture(
    architecture: str, objective: Objective, machine: Machine
) -> None:
    ours, usual, notes = both_ways(machine, settings(), objective, architecture=architecture)
    assert notes == []
    assert machine.replays
    assert same(ours, usual)


def test_the_control(machine: Machine) -> None:
    found = []
    for on in (True, False):
        with deterministic(True):
            chosen = settings(replay=on)
            found.append(control(machine.model(), tiny_tokens(WINDOWS, 32), CrossEntropy(), chosen))
    assert machine.replays == 2 * 3
    assert same(*found)


def test_rescoring_between_epochs(machine: Machine) -> None:
    """Memory is given back for it, and the next epoch records anew."""
    ours, usual, notes = both_ways(machine, settings(rescore=True), KL(), rescored=True)
    assert notes == []
    assert machine.replays == 2 * 3 * 3
    assert same(ours, usual)


def test_steps_that_go_bad_are_told_alike(machine: Machine) -> None:
    def draw(weight: Tensor, positions: Tensor, _: Any, generator: torch.Generator) -> Tensor:
        units = torch.rand(len(positions) + 1, generator=generator, device=weight.device)
        return torch.where(units[0] > 0.97, torch.inf, 0.01 * (units[1:] - 0.5)).to(weight.dtype)

    options = settings(on_bad_step="skip", epochs=6)
    ours, usual, notes = both_ways(machine, options, KL(), sampler=scripted(draw))
    assert notes == []
    assert machine.replays
    skipped = [loss.skipped for loss in usual.losses if loss.skipped is not None]
    assert 0 < len(skipped) < len(usual.losses)
    assert same(ours, usual)


def test_a_tuning_that_is_taken_up_again(machine: Machine) -> None:
    def run(checkpoint: Memory | None) -> Adapter:
        model = machine.model()
        chosen = machine.placed(some(model))
        with deterministic(True):
            return tune(
                model, tiny_tokens(WINDOWS, 32), chosen, StepUniform(), KL(), settings(),
                checkpoint=checkpoint,
            )  # fmt: skip

    whole, checkpoint = run(None), Memory(stop_after=1)
    with pytest.raises(Stopped):
        run(checkpoint)
    checkpoint.stop_after = None
    assert same(run(checkpoint), whole)
    assert machine.replays


# What cannot be recorded


class Waiting(KL):
    """Says that it does not wait, and does."""

    name: ClassVar[str] = "waiting"

    def loss(self, student: Any, tokens: Tensor, original: Any | None) -> Tensor:
        loss = super().loss(student, tokens, original)
        return loss * 1.0 if loss.item() > 1e9 else loss


def test_what_waits_is_launched_anew_and_told(machine: Machine) -> None:
    ours, usual, notes = both_ways(machine, settings(), Waiting())
    assert machine.replays == 0
    assert len(notes) == 1
    assert notes[0].startswith("the passes cannot be recorded (called a synchronizing CUDA oper")
    assert notes[0].endswith("): each is launched anew, which is slower")
    assert same(ours, usual)


def test_a_window_shorter_than_the_context_is_launched_anew(machine: Machine) -> None:
    notes, found = Watching(), []
    for on in (True, False):
        model = machine.model("Mistral", sliding_window=8)
        with deterministic(True):
            found.append(
                tune(
                    model, tiny_tokens(WINDOWS, 32), machine.placed(some(model)), StepUniform(),
                    KL(), settings(replay=on), progress=notes,
                )
            )  # fmt: skip
    assert machine.replays == 0
    assert notes.notes == [
        "the passes cannot be recorded (attention needs a mask beside the causal one): each is "
        "launched anew, which is slower"
    ]
    assert same(*found)


class Untold(KL):
    """Could be replayed, and does not say so."""

    name: ClassVar[str] = "untold"
    replayable: ClassVar[bool] = False


def test_where_it_applies() -> None:
    class Two(Processes):
        count = 2

    assert replayable(CUDA, KL(), settings(), ALONE)
    assert replayable(CUDA, CrossEntropy(), settings(), ALONE)
    assert not replayable(torch.device("cpu"), KL(), settings(), ALONE)
    assert not replayable(CUDA, KL(), settings(replay=False), ALONE)
    assert not replayable(CUDA, KL(), settings(dropout=0.1), ALONE)
    assert not replayable(CUDA, Untold(), settings(), ALONE)
    assert not replayable(CUDA, KL(), settings(), Two())


def test_results_do_not_depend_on_it() -> None:
    for dump in (Tuning.with_noise, Tuning.without_noise):
        assert dump(settings(replay=True)) == dump(settings(replay=False))
        assert "replay" not in dump(settings())


# The passes themselves


@contextmanager
def passes(
    machine: Machine, objective: Objective
) -> Iterator[tuple[LanguageModel, Direct, list[str]]]:
    """Direct passes through a model whose adapter is off zero, and a place for notes."""
    model = machine.model()
    with (
        deterministic(True),
        attached(model, list(model.layers), rank=2, alpha=4, dropout=0, seed=0) as (wrapped, _),
    ):
        wrapped.eval()
        direct = Direct(wrapped, objective, objective, balanced, ALONE)
        random = torch.Generator(machine.device).manual_seed(0)
        with torch.no_grad():
            for parameter in direct.adapter:
                noise = torch.randn(parameter.shape, generator=random, device=machine.device)
                parameter.add_(0.1 * noise)
        yield model, direct, []


def step(passes: Direct | Replayed, tokens: Tensor, weight: float) -> Tensor:
    return passes.learn(tokens, passes.original(tokens), weight)


def random_states() -> list[list[int]]:
    """Of torch's global generators."""
    there = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return [state.tolist() for state in (torch.get_rng_state(), *there)]


def gradients(direct: Direct) -> list[Tensor]:
    return [p.grad.clone() for p in direct.adapter if p.grad is not None]


@objectives
def test_weights_are_read_where_they_are(machine: Machine, objective: Objective) -> None:
    """Base weights and adapter that change between two replays, which is how noise is put on."""
    with passes(machine, objective) as (model, direct, notes):
        tokens = machine.tokens(3)
        with replayed(direct, model.network, notes.append) as ours:
            losses = [step(ours, tokens, 1.0)]
            layer = next(iter(model.layers.values()))
            kept = layer.weight.clone()
            for change in (0.05, -0.1):
                layer.weight.add_(change)
                with torch.no_grad():
                    direct.adapter[0].add_(change)
                ours.forget()
                losses.append(step(ours, tokens, 0.7))
                found = gradients(direct)
                direct.forget()
                assert torch.equal(losses[-1], step(direct, tokens, 0.7))
                assert all(map(torch.equal, found, gradients(direct)))
                ours.release()  # gradients are others now
            layer.weight.copy_(kept)
        assert len({float(loss) for loss in losses}) == 3  # none is overwritten by a later one
        assert notes == []


@objectives
def test_gradients_add_up_in_place(machine: Machine, objective: Objective) -> None:
    with passes(machine, objective) as (model, direct, notes):
        tokens, others = machine.tokens(3), machine.tokens(2, seed=1)
        for each, weight in ((tokens, 1.0), (tokens, 0.3), (others, 2.0)):
            step(direct, each, weight)
        usual = gradients(direct)
        direct.forget()
        with replayed(direct, model.network, notes.append) as ours:
            for _ in range(3):
                for each, weight in ((tokens, 1.0), (tokens, 0.3), (others, 2.0)):
                    step(ours, each, weight)
                found = gradients(direct)
                assert len(found) == len(usual)
                assert all(map(torch.equal, found, usual))
                places = [p.grad.data_ptr() for p in direct.adapter if p.grad is not None]
                ours.forget()
                assert not any(bool(gradient.any()) for gradient in gradients(direct))
                assert places == [p.grad.data_ptr() for p in direct.adapter if p.grad is not None]
        assert not gradients(direct)
        assert notes == []


def test_recording_keeps_gradients_that_are_there(machine: Machine) -> None:
    """And draws no random number."""
    with passes(machine, KL()) as (model, direct, notes):
        tokens, others = machine.tokens(3), machine.tokens(2, seed=1)
        step(direct, others, 1.0)
        step(direct, tokens, 1.0)
        usual = gradients(direct)
        direct.forget()
        step(direct, others, 1.0)
        random = random_states()
        with replayed(direct, model.network, notes.append) as ours:
            step(ours, tokens, 1.0)
            assert all(map(torch.equal, gradients(direct), usual))
        assert random_states() == random
        assert notes == []


@pytest.mark.parametrize("objective", [KL(), CrossEntropy(), Waiting()], ids=lambda o: o.name)
def test_no_recording_outlives_its_tuning(
    objective: Objective, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is it up to the garbage collector when their memory comes back."""
    made: list[weakref.ref[Any]] = []
    record = replay._Recording.__init__

    def noted(self: Any, *given: Any) -> None:
        made.append(weakref.ref(self))
        record(self, *given)

    monkeypatch.setattr(replay._Recording, "__init__", noted)
    gc.disable()
    try:
        tune(
            machine.model(), tiny_tokens(WINDOWS, 32), machine.placed(some(machine.model())),
            StepUniform(), objective, settings(),
        )  # fmt: skip
        assert [recording() for recording in made] == [None]
    finally:
        gc.enable()


@on_gpu
def test_memory_comes_back_without_a_collection() -> None:
    with passes(Machine(CUDA), KL()) as (model, direct, notes):
        tokens = tiny_tokens(16, 128).to(CUDA)
        step(direct, tokens, 1.0)
        direct.forget()
        with replayed(direct, model.network, notes.append) as warm:  # libraries keep workspaces
            step(warm, tokens, 1.0)
        gc.collect()
        torch.cuda.empty_cache()
        allocated, reserved = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
        gc.disable()
        try:
            with replayed(direct, model.network, notes.append) as ours:
                step(ours, tokens, 1.0)
                recording = weakref.ref(ours._recording)
                assert recording() is not None
                assert torch.cuda.memory_allocated() > allocated
            assert recording() is None
            assert torch.cuda.memory_allocated() == allocated
            slack = 80 * 2**20  # workspaces of cuBLAS, one for each new stream
            assert torch.cuda.memory_reserved() <= reserved + slack
        finally:
            gc.enable()
        assert notes == []


@on_gpu
def test_a_recording_holds_no_more_than_the_passes_themselves() -> None:
    """The peak with replay is not that of two sets of activations."""
    with passes(Machine(CUDA), KL()) as (model, direct, notes):
        tokens = tiny_tokens(512, 128).to(CUDA)
        peaks = []
        for way in ("direct", "replayed"):
            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            start = torch.cuda.memory_reserved()
            if way == "direct":
                step(direct, tokens, 1.0)
                direct.forget()
            else:
                with replayed(direct, model.network, notes.append) as ours:
                    for _ in range(3):
                        step(ours, tokens, 1.0)
            peaks.append(torch.cuda.max_memory_reserved() - start)
        assert peaks[1] < 1.6 * peaks[0]
        assert notes == []
