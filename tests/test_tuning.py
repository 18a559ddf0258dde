"""The tuning loop: what it trains on, what it trains to, and what it leaves behind."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from recording import constant, everywhere, observed, scripted, some, uniform, weights_of
from refusals import refusal
from tiny import tiny_model, tiny_tokens
from torch import Tensor
from torch.func import functional_call

from npft.adapters import Adapter, attached, extract, merge
from npft.artifacts import LanguageModel, Outliers
from npft.errors import NpftError
from npft.evaluation.quality import Original, evaluate, predict
from npft.grid import Grid
from npft.losses import divergence
from npft.noise import Noise
from npft.objectives import KL, CrossEntropy
from npft.quantizers import RTN, KMeans
from npft.samplers import ChannelUniform, Residual, StepUniform
from npft.scorers import Fisher
from npft.tuning import Tuning, control, tune
from npft.tuning.optimizer import linear_schedule

architectures = pytest.mark.parametrize("architecture", ["Llama", "GPT2", "OPT"])


def settings(**changes: Any) -> Tuning:
    """Two epochs of two steps with a small adapter and plain eq. 7, whatever the defaults are."""
    small = {"epochs": 2, "batch_size": 2, "rank": 2, "alpha": 4, "lr": 1e-2}
    plain = {"beta": 0.5, "terms": "both", "balance": False, "noise_bits": (4,), "norms": False}
    return Tuning(**{**small, **plain, **changes})


def same(one: Adapter, other: Adapter) -> bool:
    return one.weights.keys() == other.weights.keys() and all(
        torch.equal(one.weights[name], other.weights[name]) for name in one.weights
    )


def equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


# What training does


def initial(model: LanguageModel, options: Tuning, seed: int) -> dict[str, Tensor]:
    """The adapter before any step."""
    with attached(
        model, list(model.layers), rank=options.rank, alpha=options.alpha, dropout=0, seed=seed
    ) as (wrapped, _):
        return extract(wrapped, []).weights


def by_hand(
    model: LanguageModel, windows: Tensor, noise: float, options: Tuning
) -> dict[str, Tensor]:
    """Eq. 7 with explicit matrices, transformers' own loss, AdamW, and all windows in each step."""
    pairs = {
        name: [
            initial(model, options, 0)[f"base_model.model.{name}.lora_{x}.weight"].requires_grad_()
            for x in "AB"
        ]
        for name in model.layers
    }
    norms = {
        name: parameter.clone().requires_grad_()
        for name, parameter in model.network.named_parameters()
        if "norm" in name and options.norms
    }
    trained = [parameter for pair in pairs.values() for parameter in pair] + list(norms.values())
    optimizer = torch.optim.AdamW(trained, lr=options.lr, weight_decay=options.weight_decay)

    def loss(shift: float) -> Tensor:
        weights = {
            f"{name}.weight": model.layers[name].weight
            + shift
            + options.alpha / options.rank * b @ a
            for name, (a, b) in pairs.items()
        }
        inputs = {"input_ids": windows, "labels": windows}
        return functional_call(model.network, weights | norms, kwargs=inputs).loss

    for step in range(options.epochs):
        optimizer.param_groups[0]["lr"] = (
            options.lr * (options.epochs - step) / (options.epochs - 1)
        )
        if options.restart:
            optimizer = torch.optim.AdamW(trained, weight_decay=options.weight_decay)
        if step == 0 or options.restart:
            optimizer.param_groups[0]["lr"] = options.lr
        noisy = loss(noise)
        clean = loss(0.0)
        if options.balance:
            noisy, clean = noisy.log(), clean.log()
        total = noisy + options.beta * clean
        optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(trained, options.clip)
        optimizer.step()
    matrices = {
        f"{name}.lora_{x}.weight": matrix
        for name, pair in pairs.items()
        for x, matrix in zip("AB", pair, strict=True)
    }
    return {f"base_model.model.{n}": p.detach() for n, p in (matrices | norms).items()}


@pytest.mark.parametrize(
    "options",
    [
        {"beta": 0.5},
        {"norms": True},
        {"norms": True, "weight_decay": 0.5},
        {"beta": 0.0},
        {"beta": 3.0},
        {"beta": 0.5, "clip": 0.01},
        {"weight_decay": 0.5},
        {"balance": True},
        {"restart": True, "weight_decay": 0.5},
    ],
    ids=str,
)
def test_equation_7_by_hand(options: dict[str, Any]) -> None:
    chosen = settings(**{"epochs": 3, "batch_size": 4, "warmup": 0.0, **options})
    model, windows = tiny_model(), tiny_tokens(windows=4)
    adapter = tune(model, windows, everywhere(model), constant(0.05), CrossEntropy(), chosen)
    expected = by_hand(model, windows, 0.05, chosen)
    assert adapter.weights.keys() == expected.keys()
    for name, theirs in expected.items():
        torch.testing.assert_close(adapter.weights[name], theirs, rtol=0, atol=chosen.lr / 20)
    without_noise = by_hand(model, windows, 0.0, chosen)
    largest = max(float((without_noise[n] - expected[n]).abs().max()) for n in expected)
    assert largest > chosen.lr / 2


@pytest.mark.parametrize("balance", [False, True])
@pytest.mark.parametrize(("beta", "noise"), [(0.0, 0.05), (1e9, 0.0)])
def test_odds_of_one_term_that_leave_no_choice(beta: float, noise: float, balance: bool) -> None:
    """Then every step is the noisy one of eq. 7 at beta = 0, or the same without noise."""
    model, chosen = tiny_model(), everywhere(tiny_model())

    def trained(shift: float, **options: Any) -> Adapter:
        return tune(
            model, tiny_tokens(), chosen, constant(shift), CrossEntropy(),
            settings(balance=balance, **options),
        )  # fmt: skip

    assert same(trained(0.05, terms="one", beta=beta), trained(noise, terms="both", beta=0.0))


@pytest.mark.parametrize(("beta", "clean_share"), [(0.5, 1 / 3), (3.0, 3 / 4)])
def test_one_term_at_each_step(beta: float, clean_share: float) -> None:
    """Noise is on in the steps that tell a noisy loss, off in the others; 80 steps, 4 sigma."""
    model = tiny_model()
    clean, shaken = weights_of(model), []
    watch = observed(lambda *_: shaken.append(not equal(weights_of(model), clean)))
    options = settings(terms="one", beta=beta, epochs=20, batch_size=1, lr=1e-4)
    losses = tune(model, tiny_tokens(), some(model), uniform(0.1), watch, options).losses
    assert shaken == [loss.noisy is not None for loss in losses]
    assert shaken == [loss.clean is None for loss in losses]
    sigma = math.sqrt(clean_share * (1 - clean_share) / len(shaken))
    assert abs(1 - sum(shaken) / len(shaken) - clean_share) < 4 * sigma


def test_the_first_step_is_as_long_as_the_learning_rate() -> None:
    """Adam's first update is the rate times the gradient's sign; A's gradient is 0 at B = 0."""
    model = tiny_model()
    once = settings(epochs=1, batch_size=4, lr=0.003)
    adapter = tune(model, tiny_tokens(), some(model), uniform(0.1), KL(), once)
    start = initial(model, once, 0)
    for name, values in adapter.weights.items():
        if "lora_A" in name:
            assert torch.equal(values, start[name])
        else:
            assert values.abs().median() == pytest.approx(0.003, rel=1e-2)


@pytest.mark.parametrize(("steps", "warmup", "rising"), [(20, 0.25, 5), (20, 0.0, 1), (1, 0.5, 1)])
def test_the_rate_rises_and_falls_linearly(steps: int, warmup: float, rising: int) -> None:
    factor = linear_schedule(settings(warmup=warmup), steps)
    up = [(step + 1) / rising for step in range(rising)]
    down = [(steps - step) / (steps - rising) for step in range(rising, steps)]
    assert [factor(step) for step in range(steps)] == pytest.approx(up + down)
    assert max(up + down) == 1.0
    assert factor(steps) == 0.0


def test_a_schedule_that_restarts_falls_to_zero_in_each_epoch() -> None:
    """So the first of three epochs is that of a tuning of one epoch, bit for bit."""
    model = tiny_model()

    def losses(epochs: int, restart: bool) -> list[tuple[float, float]]:
        options = settings(epochs=epochs, batch_size=1, restart=restart, warmup=0.25)
        adapter = tune(model, tiny_tokens(), some(model), constant(0.05), CrossEntropy(), options)
        return [(loss.noisy, loss.clean) for loss in adapter.losses]

    alone = losses(1, False)
    assert losses(1, True) == alone
    assert losses(3, True)[:4] == alone
    assert losses(3, False)[:4] != alone


def sharp(architecture: str) -> LanguageModel:
    """A model that noise hurts: its predictions are far from uniform."""
    model = tiny_model(architecture)
    for parameter in model.network.parameters():
        if parameter.dim() == 2:
            parameter.mul_(3)
    return model


def kl_under_noise(model: LanguageModel, sampler: Any, windows: Tensor, original: Tensor) -> float:
    """Mean over eight draws that tuning has not seen."""
    noise = Noise(sampler, everywhere(model), [Grid(3)], torch.Generator().manual_seed(99))
    found = []
    for _ in range(8):
        with noise.applied(model), torch.no_grad():
            found.append(float(divergence(model.network(windows).logits, original)))
    return sum(found) / len(found)


@pytest.mark.parametrize("architecture", ["Llama", "GPT2"])
def test_tuning_makes_the_model_stand_still_under_noise(architecture: str) -> None:
    """KL to the original under fresh noise falls by a quarter at least."""
    model, windows, sampler = sharp(architecture), tiny_tokens(windows=16), StepUniform()
    chosen = settings(epochs=20, batch_size=4, rank=8, alpha=16, lr=0.03, noise_bits=(3,))
    adapter = tune(model, windows, everywhere(model), sampler, KL(), chosen)
    original = predict(model, windows)
    before = kl_under_noise(model, sampler, windows, original)
    after = kl_under_noise(merge(model, adapter), sampler, windows, original)
    assert after < 0.75 * before
    first, last = adapter.losses[:8], adapter.losses[-8:]
    assert sum(loss.noisy for loss in last) < 0.75 * sum(loss.noisy for loss in first)


@pytest.mark.parametrize("quantizer", [RTN(bits=3), KMeans(bits=3)], ids=lambda q: q.name)
def test_tuning_under_the_residual_serves_the_quantizer(quantizer: Any) -> None:
    """With that noise the loss is the quantized model's, its codebooks found before tuning."""
    model, windows = sharp("Llama"), tiny_tokens(windows=16)
    scores = dict(Fisher().score(model, windows.split(4)))
    chosen = settings(epochs=20, batch_size=4, rank=8, alpha=16, noise_bits=(3,))
    sampler = Residual(quantizers=(quantizer.name,))
    adapter = tune(model, windows, everywhere(model), sampler, KL(), chosen, sensitivities=scores)
    original = Original(model, windows)
    found = []
    for candidate in (model, merge(model, adapter)):
        quantized = candidate.copy()
        for name, layer in quantized.layers.items():
            quantize = quantizer.follow(model.layers[name].weight, scores[name])
            layer.weight.copy_(quantize(layer.weight).dequantize())
        found.append(evaluate(quantized, original).kl)
    assert found[1] < 0.85 * found[0]
    assert adapter.losses[0].noisy == pytest.approx(found[0], rel=0.3)  # on 4 of the 16 windows


# What the objective sees


@architectures
@pytest.mark.parametrize("chosen", [some, everywhere])
def test_noise_is_on_the_base_in_the_noisy_pass_and_off_in_the_clean_one(
    architecture: str, chosen: Any
) -> None:
    model = tiny_model(architecture)
    clean, outliers = weights_of(model), chosen(model)
    seen: list[dict[str, Tensor]] = []
    watch = observed(lambda *_: seen.append(weights_of(model)))
    tune(model, tiny_tokens(), outliers, uniform(0.1), watch, settings())
    assert len(seen) == 8  # two passes in each of four steps
    shaken = seen[0::2]
    for weights in seen[1::2]:
        assert equal(weights, clean)
    for name, weight in clean.items():
        others = torch.ones(weight.numel(), dtype=torch.bool)
        others[outliers[name].indices()] = False
        for weights in shaken:
            difference = (weights[name] - weight).flatten()
            assert not difference[others].any()
            assert difference[~others].count_nonzero() > 0.9 * len(outliers[name])
        assert len({weights[name].sum().item() for weights in shaken}) == 4


def test_noise_of_an_epoch() -> None:
    model = tiny_model()
    seen: list[Tensor] = []
    name = next(iter(model.layers))
    watch = observed(lambda *_: seen.append(model.layers[name].weight.clone()))
    options = settings(epochs=3, beta=0, draw="epoch")
    tune(model, tiny_tokens(), some(model), uniform(0.1), watch, options)
    first, second, third = seen[0:2], seen[2:4], seen[4:6]
    for pair in (first, second, third):
        assert torch.equal(*pair)
    assert not torch.equal(first[0], second[0])
    assert not torch.equal(second[0], third[0])


@pytest.mark.parametrize("kind", ["attention", "mlp"])
def test_noise_on_one_kind_of_layer_and_an_adapter_on_all(kind: str) -> None:
    model = tiny_model()
    clean = weights_of(model)
    shaken: set[str] = set()

    def see(*_: object) -> None:
        now = weights_of(model)
        shaken.update(name for name in now if not torch.equal(now[name], clean[name]))

    options = settings(layers=kind)
    adapter = tune(model, tiny_tokens(), some(model), uniform(0.1), observed(see), options)
    assert shaken == {name for name, layer in model.layers.items() if layer.kind == kind}
    for name in model.layers:
        assert adapter.weights[f"base_model.model.{name}.lora_B.weight"].any()


@pytest.mark.parametrize(
    ("architecture", "skipped"), [("Llama", "gate_proj"), ("GPT2", "c_fc"), ("OPT", "fc1")]
)
def test_noise_without_an_adapter(architecture: str, skipped: str) -> None:
    """The skipped layers are shaken by noise for their base weight, which merging leaves."""
    model = tiny_model(architecture)
    clean = weights_of(model)
    without = {name for name in model.layers if name.endswith(skipped)}
    shaken, moved = set(), set()

    def see(*_: object) -> None:
        now = weights_of(model)
        shaken.update(name for name in now if not torch.equal(now[name], clean[name]))

    given = iter(list(clean) * 4)

    def draw(weight: Tensor, positions: Tensor, *_: object) -> Tensor:
        name = next(given)
        if not torch.equal(weight, clean[name]):
            moved.add(name)
        return weight.new_full(positions.shape, 0.05)

    adapter = tune(
        model,
        tiny_tokens(),
        some(model),
        scripted(draw),
        observed(see),
        settings(adapter_skip=(skipped,)),
    )
    assert len(without) == 2
    assert shaken == set(clean)
    assert moved == set(clean) - without
    merged = weights_of(merge(model, adapter))
    assert {name for name in clean if torch.equal(merged[name], clean[name])} == without
    assert len(adapter.weights) == 2 * len(moved)


@pytest.mark.parametrize(
    ("skip", "parts"),
    [
        (("gate_prj",), ("'gate_prj'", "no layer", "gate_proj")),
        (("attention", "gate_proj"), ("'attention'",)),
        (
            ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
            ("leaves no layer",),
        ),
    ],
)
def test_skipping_what_is_not_there_or_everything(
    skip: tuple[str, ...], parts: tuple[str, ...]
) -> None:
    model = tiny_model()
    before = snapshot(model)
    options = settings(adapter_skip=skip)
    refusal(lambda: tune(model, tiny_tokens(), some(model), uniform(0.1), KL(), options), *parts)
    refusal(lambda: control(model, tiny_tokens(), KL(), options), *parts)
    assert_untouched(model, before)


@architectures
def test_the_original_is_the_plain_model(architecture: str) -> None:
    """Exactly, at every step: no noise, no adapter, no dropout."""
    model, plain = tiny_model(architecture), tiny_model(architecture)
    compared = []

    def see(student: Any, tokens: Tensor, original: Any) -> None:
        with torch.no_grad():
            expected = plain.network(tokens, use_cache=False).logits
        assert not original.logits.requires_grad
        compared.append(torch.equal(original.logits, expected))
        first_clean_pass = len(compared) == 2  # B is still 0
        assert torch.equal(student.logits, expected) == first_clean_pass

    tune(model, tiny_tokens(), some(model), constant(0.05), observed(see, KL()), settings(lr=0.1))
    assert compared == [True] * 8


@architectures
def test_the_models_own_dropout_is_off(architecture: str) -> None:
    """With B = 0 and no noise the student is the original, so that the first KL is 0."""
    model = tiny_model(architecture)
    losses = control(model, tiny_tokens(), KL(), settings()).losses
    assert losses[0].clean == 0.0


def test_the_adapters_dropout_is_on_where_asked_for() -> None:
    model = tiny_model()
    none, half = (
        tune(model, tiny_tokens(), some(model), uniform(0.1), KL(), settings(dropout=dropout))
        for dropout in (0.0, 0.5)
    )
    assert not same(none, half)
    assert none.losses[0] == half.losses[0]  # B is still 0
    assert none.losses[1] != half.losses[1]


def test_every_epoch_sees_every_window_once_in_another_order() -> None:
    model, windows = tiny_model(), tiny_tokens(windows=7)
    seen: list[tuple[int, ...]] = []

    def see(_: Any, tokens: Tensor, __: Any) -> None:
        seen.extend(tuple(row.tolist()) for row in tokens)

    adapter = tune(
        model, windows, some(model), uniform(0.1), observed(see), settings(beta=0, batch_size=3)
    )
    every = Counter(tuple(row.tolist()) for row in windows)
    assert Counter(seen[:7]) == Counter(seen[7:]) == every
    assert seen[:7] != seen[7:]
    assert [loss.step for loss in adapter.losses] == list(range(6))


def test_losses_tell_both_terms() -> None:
    model, windows = tiny_model(), tiny_tokens()
    with torch.no_grad():
        plain = float(model.network(windows, labels=windows).loss)
    whole = settings(epochs=1, batch_size=4)
    for beta in (0.5, 0.0):
        adapter = tune(
            model, windows, everywhere(model), constant(0.3), CrossEntropy(),
            whole.model_copy(update={"beta": beta}),
        )  # fmt: skip
        (loss,) = adapter.losses
        if beta:
            assert loss.clean == pytest.approx(plain, rel=1e-4)
        else:
            assert loss.clean is None
        assert abs(loss.noisy - plain) > 0.01


# Equalities


@architectures
def test_everything_with_or_without_an_index(architecture: str) -> None:
    model = tiny_model(architecture)
    explicit = {
        name: Outliers(outliers.shape, outliers.indices())
        for name, outliers in everywhere(model).items()
    }
    implicit, indexed = (
        tune(model, tiny_tokens(), chosen, StepUniform(), KL(), settings())
        for chosen in (everywhere(model), explicit)
    )
    assert same(implicit, indexed)


@pytest.mark.parametrize("objective", [CrossEntropy(), KL()], ids=lambda o: o.name)
@architectures
def test_the_control_is_tuning_without_noise(architecture: str, objective: Any) -> None:
    model, options = tiny_model(architecture), settings(beta=0)
    still = tune(model, tiny_tokens(), everywhere(model), constant(0.0), objective, options)
    assert same(control(model, tiny_tokens(), objective, options), still)
    shaken = tune(model, tiny_tokens(), everywhere(model), constant(0.1), objective, options)
    assert not same(shaken, still)


def test_the_control_puts_no_noise_on_the_weights() -> None:
    model = tiny_model()
    clean = weights_of(model)
    seen: list[bool] = []
    watch = observed(lambda *_: seen.append(equal(weights_of(model), clean)))
    control(model, tiny_tokens(), watch, settings())
    assert seen == [True] * 4


@pytest.mark.parametrize(
    "sampler", [StepUniform(), ChannelUniform(axis="input"), Residual()], ids=lambda s: s.name
)
@pytest.mark.parametrize("options", [{}, {"dropout": 0.3, "noise_bits": (3, 4)}], ids=str)
def test_a_seed_fixes_every_bit(sampler: Any, options: dict[str, Any]) -> None:
    model, outliers = tiny_model(), some(tiny_model())
    scores = dict(Fisher().score(model, [tiny_tokens()]))

    def tuned(seed: int, disturbance: int) -> Adapter:
        torch.manual_seed(disturbance)
        return tune(
            model, tiny_tokens(), outliers, sampler, KL(), settings(**options),
            seed=seed, sensitivities=scores,
        )  # fmt: skip

    first = tuned(0, disturbance=1)
    again = tuned(0, disturbance=2)
    assert same(first, again)
    assert first.losses == again.losses
    assert not same(first, tuned(1, disturbance=1))


def test_a_seed_fixes_every_bit_of_the_control() -> None:
    model = tiny_model()
    first, again, other = (
        control(model, tiny_tokens(), CrossEntropy(), settings(dropout=0.3), seed=seed)
        for seed in (0, 0, 1)
    )
    assert same(first, again)
    assert not same(first, other)


def test_global_random_states_are_left_alone() -> None:
    model = tiny_model()
    before = (torch.get_rng_state(), random.getstate(), repr(np.random.get_state()))
    options = settings(dropout=0.3, noise_bits=(3, 4))
    tune(model, tiny_tokens(), some(model), StepUniform(), KL(), options)
    control(model, tiny_tokens(), KL(), options)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), repr(np.random.get_state())) == before[1:]


# What is left behind


def snapshot(model: LanguageModel) -> tuple[Any, ...]:
    weights = {name: value.clone() for name, value in model.network.state_dict().items()}
    modules = [(name, type(m), m.training) for name, m in model.network.named_modules()]
    flags = [(p.requires_grad, p.grad is None) for p in model.network.parameters()]
    with torch.no_grad():
        return weights, modules, flags, model.network(tiny_tokens()).logits


def assert_untouched(model: LanguageModel, before: tuple[Any, ...]) -> None:
    weights, modules, flags, predicted = snapshot(model)
    assert equal(weights, before[0])
    assert modules == before[1]
    assert flags == before[2]
    assert torch.equal(predicted, before[3])


@architectures
@pytest.mark.parametrize("which", ["tune", "control"])
def test_the_model_is_untouched(architecture: str, which: str) -> None:
    model = tiny_model(architecture)
    before = snapshot(model)
    if which == "tune":
        tune(model, tiny_tokens(), everywhere(model), uniform(10.0), KL(), settings())
    else:
        control(model, tiny_tokens(), KL(), settings())
    assert_untouched(model, before)


def test_weights_are_clean_whenever_noise_is_drawn() -> None:
    """The sampler is asked layer by layer: when the first is asked, every weight is clean again."""
    model = tiny_model()
    clean = weights_of(model)
    calls = []

    def draw(_: Tensor, positions: Tensor, __: Grid, source: torch.Generator) -> Tensor:
        if len(calls) % len(clean) == 0:
            assert equal(weights_of(model), clean)
        calls.append(None)
        return torch.randn(positions.shape, generator=source)

    tune(model, tiny_tokens(), everywhere(model), scripted(draw), KL(), settings())
    assert len(calls) == 4 * len(clean)


@architectures
@pytest.mark.parametrize("failing", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("part", ["sampler", "noisy", "clean", "progress", "rescore"])
def test_the_model_is_untouched_after_a_failure(
    architecture: str, failing: type[BaseException], part: str
) -> None:
    model = tiny_model(architecture)
    before = snapshot(model)
    draws, losses = 0, 0

    def draw(weight: Tensor, positions: Tensor, *_: object) -> Tensor:
        nonlocal draws
        draws += 1
        if part == "sampler" and draws == len(model.layers) + 4:
            raise failing
        return torch.ones_like(positions, dtype=weight.dtype)

    def see(*_: object) -> None:
        nonlocal losses
        losses += 1
        if losses == {"noisy": 3, "clean": 4}.get(part, 0):
            assert equal(weights_of(model), weights_of(tiny_model(architecture))) == (
                part == "clean"
            )
            raise failing

    class Interrupted:
        def track(self, items: Iterable[Any], label: str, total: int) -> Iterator[Any]:
            for index, item in enumerate(items):
                if part == "progress" and index == 2:
                    raise failing
                yield item

        def note(self, message: str) -> None:
            pass

    def rescore(_: LanguageModel) -> Mapping[str, Outliers]:
        raise failing

    with pytest.raises(failing):
        tune(
            model,
            tiny_tokens(),
            everywhere(model),
            scripted(draw),
            observed(see, KL()),
            settings(rescore=part == "rescore"),
            rescore=rescore,
            progress=Interrupted(),
        )
    assert_untouched(model, before)


@pytest.mark.parametrize("broken", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["noise", "clean loss", "control"])
def test_a_loss_that_is_not_finite_is_an_error(broken: float, where: str) -> None:
    model = tiny_model()
    before = snapshot(model)
    clean = next(iter(model.layers.values())).weight.clone()

    def see(student: Any, *_: object) -> None:
        if where == "control" or torch.equal(next(iter(model.layers.values())).weight, clean):
            student.logits = student.logits + math.nan

    objective = CrossEntropy() if where == "noise" else observed(see)
    noise = constant(broken if where == "noise" else 0.1)
    train = (
        partial(control, model, tiny_tokens(), objective, settings())
        if where == "control"
        else partial(tune, model, tiny_tokens(), everywhere(model), noise, objective, settings())
    )
    with pytest.raises(NpftError, match="the tuning loss became"):
        train()
    assert_untouched(model, before)


# Re-scoring


@architectures
def test_outliers_are_selected_anew_before_each_later_epoch(architecture: str) -> None:
    """The first epoch shakes ``outliers``; each later one what ``rescore`` gave for it."""
    model = tiny_model(architecture)
    clean = weights_of(model)
    name = next(iter(clean))
    shape = tuple(clean[name].shape)
    events: list[object] = []
    asked: list[dict[str, Tensor]] = []

    def see(*_: object) -> None:
        difference = (model.layers[name].weight - clean[name]).flatten()
        events.append(difference.nonzero().flatten().tolist())

    def rescore(adapted: LanguageModel) -> Mapping[str, Outliers]:
        events.append("rescore")
        asked.append({n: layer.weight.clone() for n, layer in adapted.layers.items()})
        assert equal(weights_of(model), clean)
        assert not any(module.training for module in adapted.network.modules())
        return {name: Outliers(shape, torch.tensor([len(asked)]))}

    options = settings(epochs=3, beta=0, rescore=True)
    first = {name: Outliers(shape, torch.tensor([0]))}
    tune(model, tiny_tokens(), first, constant(1.0), observed(see), options, rescore=rescore)
    assert events == [[0], [0], "rescore", [1], [1], "rescore", [2], [2]]
    for weights in asked:
        assert not any(torch.equal(weights[n], clean[n]) for n in clean)
    assert not equal(*asked)


def test_outliers_stay_unless_asked() -> None:
    model = tiny_model()

    def rescore(_: LanguageModel) -> Mapping[str, Outliers]:
        raise AssertionError("rescore was not asked for")

    tune(model, tiny_tokens(), some(model), uniform(0.1), KL(), settings(), rescore=rescore)


@architectures
def test_scoring_between_epochs_does_not_disturb_training(architecture: str) -> None:
    """Fisher's own gradients must not reach the adapter, nor its forward passes the dropout."""
    model, outliers = tiny_model(architecture), some(tiny_model(architecture))
    scored: list[dict[str, Tensor]] = []

    def score_and_keep(adapted: LanguageModel) -> Mapping[str, Outliers]:
        scored.append(dict(Fisher().score(adapted, tiny_tokens().split(2))))
        return outliers

    options = settings(dropout=0.3, rescore=True)
    with_scoring, without = (
        tune(model, tiny_tokens(), outliers, uniform(0.1), KL(), options, rescore=rescore)
        for rescore in (score_and_keep, lambda _: outliers)
    )
    assert len(scored) == 1
    assert same(with_scoring, without)


def test_a_sampler_that_needs_sensitivities_says_so() -> None:
    model = tiny_model()
    with pytest.raises(NpftError, match="sampler 'residual' needs the sensitivities"):
        tune(model, tiny_tokens(), some(model), Residual(), KL(), settings())


@pytest.mark.parametrize(
    "options",
    [
        {"epochs": 0}, {"lr": 0.0}, {"beta": -0.1}, {"rank": 0}, {"dropout": 1.0}, {"warmup": 1.0},
        {"clip": 0.0}, {"layers": "none"}, {"draw": "never"}, {"noise_bits": ()}, {"epoch": 1},
    ],
    ids=str,
)  # fmt: skip
def test_bad_settings_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        Tuning(**options)


def test_bad_noise_grids_are_refused() -> None:
    with pytest.raises(NpftError, match=r"bits=9 is outside 2\.\.8"):
        Tuning(noise_bits=(4, 9)).grids()
    assert Tuning(noise_bits=(3, 4), noise_group_size=16).grids() == [Grid(3, 16), Grid(4, 16)]
