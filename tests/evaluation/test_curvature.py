"""Curvature against full Hessians in float64, closed forms and sums by hand."""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from recording import everywhere, some, weights_of
from tiny import CONFIGS, tiny_model, tiny_tokens
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from npft.artifacts import LanguageModel, LinearLayer, Outliers
from npft.errors import NpftError
from npft.evaluation.curvature import Estimate, fisher_mass, hessian_trace, noise_estimate
from npft.grid import Grid, step_size
from npft.samplers import StepUniform
from npft.scorers import Fisher


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def at(model: LanguageModel, **positions: list[int]) -> dict[str, Outliers]:
    """Outliers of the layers whose names end in the given words."""
    found = {}
    for ending, flat in positions.items():
        name = next(name for name in model.layers if name.endswith(ending))
        layer = model.layers[name]
        found[name] = Outliers((layer.out_features, layer.in_features), torch.tensor(flat))
    return found


def full_hessian(model: LanguageModel, outliers: dict[str, Outliers], tokens: Tensor) -> Tensor:
    """The Hessian ``(k, k)`` at the outliers of all layers, in float64, by autograd."""
    network = copy.deepcopy(model.network).double()
    sizes = [len(found) for found in outliers.values()]

    def loss(moved: Tensor) -> Tensor:
        changed = {}
        for (name, found), values in zip(outliers.items(), moved.split(sizes), strict=True):
            weight = network.get_submodule(name).weight.detach()
            transposed = model.layers[name].transposed
            matrix = (weight.T if transposed else weight).contiguous()
            matrix = matrix.put(found.positions, values)
            changed[f"{name}.weight"] = matrix.T if transposed else matrix
        logits = torch.func.functional_call(network, changed, (tokens,)).logits
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())

    start = torch.cat([f.take(model.layers[name].weight).double() for name, f in outliers.items()])
    with sdpa_kernel(SDPBackend.MATH):
        return torch.autograd.functional.hessian(loss, start)


LAYER = {"GPT2": "mlp.c_proj", "OPT": "fc1", "GPTNeoX": "dense_h_to_4h", "Phi": "fc2"}
"""One layer of each architecture; of the others ``q_proj``, whose attention is curved too."""


@pytest.mark.parametrize("architecture", CONFIGS)
def test_one_position_is_exact(architecture: str) -> None:
    """z² = 1, so that each probe is the one entry of the Hessian, in float32."""
    model, tokens = tiny_model(architecture), tiny_tokens(windows=3)
    outliers = at(model, **{LAYER.get(architecture, "q_proj"): [70]})
    expected = float(full_hessian(model, outliers, tokens))
    estimate = hessian_trace(model, outliers, [tokens], probes=2, random=seeded())
    assert abs(expected) > 1e-6
    assert estimate.value == pytest.approx(expected, rel=1e-3)
    assert estimate.standard_error == 0


@pytest.mark.parametrize("architecture", ["Llama", "GPT2"])
def test_probes_are_the_trace_and_the_entries_off_the_diagonal(architecture: str) -> None:
    """With two positions each probe is Tr(H) + 2 H₁₂ or Tr(H) - 2 H₁₂."""
    model, tokens = tiny_model(architecture), tiny_tokens()
    ending = "mlp.c_proj" if architecture == "GPT2" else "down_proj"
    outliers = at(model, **{ending: [37, 38]})
    hessian = full_hessian(model, outliers, tokens)
    probes = 20
    estimate = hessian_trace(model, outliers, [tokens], probes=probes, random=seeded())
    trace, cross = float(hessian.trace()), 2 * float(hessian[0, 1])
    agreeing = ((estimate.value - trace) / cross + 1) / 2 * probes
    assert 0 < round(agreeing) < probes
    assert agreeing == pytest.approx(round(agreeing), abs=0.01)
    share = agreeing / probes
    error = 2 * abs(cross) * math.sqrt(share * (1 - share) / (probes - 1))
    assert estimate.standard_error == pytest.approx(error, rel=1e-2)


@pytest.mark.parametrize("architecture", ["Llama", "GPT2"])
def test_the_trace_is_unbiased_over_several_layers_and_batches(architecture: str) -> None:
    model, tokens = tiny_model(architecture), tiny_tokens(windows=5)
    outliers = {n: Outliers(f.shape, f.positions[:3]) for n, f in some(model).items()}
    expected = float(full_hessian(model, outliers, tokens).trace())
    batches = [tokens[:4], tokens[4:]]
    estimate = hessian_trace(model, outliers, batches, probes=200, random=seeded())
    assert estimate.value == pytest.approx(expected, abs=4 * estimate.standard_error)
    assert estimate.standard_error < abs(expected) / 4


def test_batches_count_by_their_tokens() -> None:
    model, tokens = tiny_model(), tiny_tokens(windows=5)
    outliers = at(model, q_proj=[70])
    whole = hessian_trace(model, outliers, [tokens], probes=2, random=seeded())
    parts = hessian_trace(model, outliers, [tokens[:1], tokens[1:]], probes=2, random=seeded())
    assert parts.value == pytest.approx(whole.value, rel=1e-4)
    grid = Grid(3)
    whole = noise_estimate(model, outliers, [tokens], grid, draws=2, random=seeded())
    parts = noise_estimate(
        model, outliers, [tokens[:1], tokens[1:]], grid, draws=2, random=seeded()
    )
    assert parts.value == pytest.approx(whole.value, abs=1e-6)


class Quadratic(nn.Module):
    """A model with two tokens whose loss is ``1 + b·w + ½ wᵀAw`` of its only weight ``w``."""

    def __init__(self, weight: Tensor, slope: Tensor, curvature: Tensor) -> None:
        super().__init__()
        self.linear = nn.Linear(*weight.shape[::-1], bias=False)
        self.linear.weight = nn.Parameter(weight, requires_grad=False)
        self.slope, self.curvature = slope, curvature

    def forward(self, input_ids: Tensor, **_: Any) -> SimpleNamespace:
        flat = self.linear.weight.flatten().double()
        loss = 1 + self.slope @ flat + flat @ self.curvature @ flat / 2
        # Cross-entropy of the second token from logits (x, 0) is log(1 + eˣ).
        logits = torch.stack([loss.expm1().log(), torch.zeros_like(loss)])
        return SimpleNamespace(logits=logits.expand(*input_ids.shape, 2))


def quadratic(curvature: Tensor, slope: float = 0.0) -> tuple[LanguageModel, list[Tensor]]:
    """A quadratic in 8 weights ``(2, 4)``, and a batch for it."""
    weight = torch.randn(2, 4, generator=seeded(1)) / 4
    network: Any = Quadratic(weight, torch.full((8,), slope).double(), curvature.double())
    layer = LinearLayer("linear", network.linear, "mlp")
    model = LanguageModel(network, None, {"linear": layer})
    return model, [torch.ones(1, 3, dtype=torch.int64)]


def test_the_first_order_cancels_in_every_pair() -> None:
    """A slope alone gives no increase, though noise in one direction has a large one."""
    model, batches = quadratic(torch.zeros(8, 8), slope=0.3)
    everything = everywhere(model)
    estimate = noise_estimate(model, everything, batches, Grid(2), draws=8, random=seeded())
    assert estimate.value == pytest.approx(0, abs=1e-6)
    assert estimate.standard_error < 1e-6


def test_each_pair_is_half_the_quadratic_form() -> None:
    root = torch.randn(8, 8, generator=seeded(2)).double()
    curvature = root @ root.T / 8
    model, batches = quadratic(curvature, slope=0.1)
    positions, random = torch.tensor([1, 2, 6]), seeded()
    outliers = {"linear": Outliers((2, 4), positions)}
    estimate = noise_estimate(model, outliers, batches, Grid(2), draws=5, random=seeded())
    part = curvature[positions][:, positions]
    expected = []
    for _ in range(5):
        z = StepUniform().sample(model.layers["linear"].weight, positions, Grid(2), random)
        expected.append(float(z.double() @ part @ z.double() / 2))
    known = Estimate.of(expected)
    assert estimate.value == pytest.approx(known.value, abs=1e-6)
    assert estimate.standard_error == pytest.approx(known.standard_error, abs=1e-6)


@pytest.mark.parametrize("grid", [Grid(2), Grid(3, group_size=2)])
def test_the_closed_form_of_a_quadratic(grid: Grid) -> None:
    """½ Σ Hᵢᵢ Δᵢ² / 12: entries off the diagonal add nothing on average."""
    curvature = torch.diag(torch.arange(1.0, 9.0)) + 0.5
    model, batches = quadratic(curvature, slope=0.1)
    everything = everywhere(model)
    steps = step_size(model.layers["linear"].weight, grid).flatten().double()
    expected = float((curvature.diagonal() * steps**2).sum() / 24)
    estimate = noise_estimate(model, everything, batches, grid, draws=2000, random=seeded())
    assert estimate.value == pytest.approx(expected, abs=4 * estimate.standard_error)
    assert estimate.standard_error < expected / 20
    trace = hessian_trace(model, everything, batches, probes=500, random=seeded())
    assert trace.value == pytest.approx(40, abs=4 * trace.standard_error)


def test_small_noise_on_a_language_model_sees_the_hessian() -> None:
    """Eq. 5 links the two estimates: the increase is ½ zᵀHz, to second order."""
    model, tokens = tiny_model(), tiny_tokens()
    outliers = at(model, down_proj=list(range(5 * 64, 6 * 64)))
    ((name, found),) = outliers.items()
    grid, random, weight = Grid(4), seeded(), model.layers[name].weight
    drawn = [StepUniform().sample(weight, found.indices(), grid, random) for _ in range(8)]
    hessian = full_hessian(model, outliers, tokens)
    expected = Estimate.of([float(z.double() @ hessian @ z.double() / 2) for z in drawn])
    estimate = noise_estimate(model, outliers, [tokens], grid, draws=8, random=seeded())
    assert estimate.value == pytest.approx(expected.value, rel=0.05)
    assert estimate.standard_error == pytest.approx(expected.standard_error, rel=0.05)


def state(model: LanguageModel) -> tuple[list[bool], list[Tensor | None], Tensor]:
    parameters = list(model.network.parameters())
    flags, gradients = [p.requires_grad for p in parameters], [p.grad for p in parameters]
    return flags, gradients, torch.get_rng_state()


def measure(what: str, model: LanguageModel, batches: list[Tensor], seed: int = 0) -> Estimate:
    outliers = some(model)
    if what == "trace":
        return hessian_trace(model, outliers, batches, probes=2, random=seeded(seed))
    return noise_estimate(model, outliers, batches, Grid(4), draws=2, random=seeded(seed))


@pytest.mark.parametrize("what", ["trace", "noise"])
@pytest.mark.parametrize("architecture", ["Llama", "GPT2"])
@pytest.mark.parametrize("broken", [False, True])
def test_the_model_and_the_global_generator_stay_as_they_are(
    what: str, architecture: str, broken: bool
) -> None:
    model = tiny_model(architecture)
    next(iter(model.layers.values())).module.weight.requires_grad_(True)
    before, (flags, gradients, rng) = weights_of(model), state(model)
    batches = [tiny_tokens()]
    if broken:
        calls: list[None] = []

        def fail(*_: Any) -> None:
            calls.append(None)
            if what == "trace" or len(calls) == 3:  # with the noise of the other sign
                raise RuntimeError("no more")

        model.network.get_input_embeddings().register_forward_hook(fail)
        with pytest.raises(RuntimeError, match="no more"):
            measure(what, model, batches)
    else:
        measure(what, model, batches)
    assert all(torch.equal(before[n], weight) for n, weight in weights_of(model).items())
    after = state(model)
    assert after[:2] == (flags, gradients)
    assert torch.equal(after[2], rng)


@pytest.mark.parametrize("what", ["trace", "noise"])
def test_only_the_generator_decides(what: str) -> None:
    model, batches = tiny_model(), [tiny_tokens()]
    with torch.no_grad():
        first = measure(what, model, batches)
    torch.rand(3)
    assert measure(what, model, batches) == first
    assert measure(what, model, batches, seed=1) != first


@pytest.mark.parametrize("what", ["trace", "noise"])
def test_all_positions_need_no_index(what: str) -> None:
    model, batches = tiny_model("GPT2"), [tiny_tokens(windows=2)]
    implied = everywhere(model)
    listed = {n: Outliers(f.shape, f.indices()) for n, f in implied.items()}
    found = []
    for outliers in (implied, listed):
        if what == "trace":
            found.append(hessian_trace(model, outliers, batches, probes=2, random=seeded()))
        else:
            found.append(
                noise_estimate(model, outliers, batches, Grid(4), draws=2, random=seeded())
            )
    assert found[0].value == pytest.approx(found[1].value, rel=1e-4)


def test_what_is_refused() -> None:
    model, batches = tiny_model(), [tiny_tokens()]
    good = some(model)

    def refused(match: str, **changes: Any) -> None:
        given = {"outliers": good, "batches": batches, "count": 2, "model": model, **changes}
        count = given.pop("count")
        with pytest.raises(NpftError, match=match):
            hessian_trace(**given, probes=count, random=seeded())
        with pytest.raises(NpftError, match=match):
            noise_estimate(**given, grid=Grid(4), draws=count, random=seeded())

    refused("=1 gives no standard error", count=1)
    refused("no next token", batches=[])
    refused("no next token", batches=[tiny_tokens(context=1)])
    refused("no outliers", outliers={})
    name = next(iter(good))
    refused("no outliers", outliers={name: Outliers(good[name].shape, torch.tensor([], dtype=int))})
    refused("no layer nowhere", outliers={**good, "nowhere": good[name]})
    refused("its outliers are of", outliers={**good, name: Outliers((3, 2), None)})
    half = model.copy()
    half.network.bfloat16()
    refused("lost in bfloat16", model=half)


def test_fisher_mass_by_hand() -> None:
    scores = {
        "a": torch.tensor([[1.0, 2.0], [4.0, 8.0]]),
        "b": torch.tensor([[16.0, 32.0]]),
        "c": torch.tensor([[64.0]]),
    }
    outliers = {"a": Outliers((2, 2), torch.tensor([1, 3])), "b": Outliers((1, 2), None)}
    expected = (2 + 8 + 16 + 32, 127)
    assert fisher_mass(scores, outliers) == expected
    assert fisher_mass(iter(scores.items()), outliers) == expected
    assert fisher_mass(scores, {}).outliers == 0


def test_fisher_mass_of_a_scorers_stream() -> None:
    model, tokens = tiny_model("GPT2"), tiny_tokens()
    outliers = some(model)
    known = dict(Fisher().score(model, [tokens]))
    mass = fisher_mass(Fisher().score(model, [tokens]), outliers)
    assert mass.total == pytest.approx(sum(float(values.sum()) for values in known.values()))
    listed = (known[name].flatten()[found.positions].sum() for name, found in outliers.items())
    assert mass.outliers == pytest.approx(float(sum(listed)))
    assert fisher_mass(known, everywhere(model)).outliers == pytest.approx(mass.total)


def test_fisher_mass_refuses_scores_of_another_model() -> None:
    with pytest.raises(NpftError, match="layer a has shape"):
        fisher_mass({"a": torch.ones(2, 2)}, {"a": Outliers((1, 2), None)})
    with pytest.raises(NpftError, match="layer b has outliers but no scores"):
        fisher_mass({"a": torch.ones(2, 2)}, {"b": Outliers((1, 2), None)})
