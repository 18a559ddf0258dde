"""Tuning, merging, evaluation and quantization of a streamed model are those of a resident one."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from recording import everywhere, some, weights_of
from tiny import tiny_model, tiny_tokens
from torch import Tensor

from npft import models
from npft.adapters import Adapter, attached, merge, trainable
from npft.artifacts import LanguageModel, QuantizedModel
from npft.comparison import available
from npft.contracts import Objective
from npft.evaluation.quality import Original, evaluate
from npft.grid import Grid
from npft.noise import Noise
from npft.objectives import KL, CrossEntropy
from npft.passes import Direct, plain
from npft.processes import ALONE
from npft.progress import Silent
from npft.quantizers import RTN, KMeans
from npft.samplers import ChannelUniform, Residual, StepUniform
from npft.scorers import Fisher
from npft.terms import Shaken
from npft.tuning import Tuning, tune

ARCHITECTURES = ["Llama", "GPT2", "OPT", "GPTNeoX"]
LAYERS = {"GPT2": "n_layer"}


def resident(architecture: str = "Llama") -> LanguageModel:
    return tiny_model(architecture, **{LAYERS.get(architecture, "num_hidden_layers"): 4})


def streamed(architecture: str = "Llama") -> LanguageModel:
    return models.streamed(resident(architecture), torch.device("cpu"))


def settings(**changes: Any) -> Tuning:
    small = {"epochs": 2, "batch_size": 2, "rank": 2, "alpha": 4, "lr": 1e-3, "noise_bits": (4,)}
    return Tuning(**{**small, "terms": "both", "balance": False, **changes})


def assert_alike(one: Adapter, other: Adapter) -> None:
    """The weights are not compared: Adam makes whole steps of gradients that are rounding alone."""
    for mine, theirs in zip(one.losses, other.losses, strict=True):
        for one_s, other_s in ((mine.noisy, theirs.noisy), (mine.clean, theirs.clean)):
            assert (one_s is None) == (other_s is None)
            assert one_s is None or one_s == pytest.approx(other_s, rel=1e-3, abs=1e-5)


def gradients(model: LanguageModel, chosen: Any, objective: Objective) -> list[Tensor]:
    """Losses under noise and without, then the gradients of their sum."""
    source = torch.Generator().manual_seed(0)
    noise = Noise(StepUniform(scale=20), chosen(model), [Grid(3)], source)
    with attached(model, list(model.layers), rank=2, alpha=4, dropout=0, seed=0) as (wrapped, view):
        wrapped.eval()
        with torch.no_grad():
            for parameter in trainable(wrapped):
                parameter.normal_(0, 0.1, generator=torch.Generator().manual_seed(1))
        passes = Direct(wrapped, objective, objective, plain, ALONE)
        tokens = tiny_tokens()
        with torch.enable_grad():
            original = passes.original(tokens)
            losses = [
                Shaken(passes, view, noise).learn(tokens, original, 1.0),
                passes.learn(tokens, original, 1.0),
            ]
        return losses + [parameter.grad for parameter in trainable(wrapped)]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("chosen", [some, everywhere])
@pytest.mark.parametrize("objective", [CrossEntropy(), KL()], ids=lambda o: o.name)
def test_losses_and_gradients(architecture: str, chosen: Any, objective: Any) -> None:
    one, other = (gradients(make(architecture), chosen, objective) for make in (resident, streamed))
    assert abs(float(one[0] - one[1])) > 1e-3 * float(one[1])
    torch.testing.assert_close(other[:2], one[:2], rtol=1e-5, atol=1e-6)
    for mine, theirs in zip(one, other, strict=True):
        atol = 1e-5 * float(mine.abs().max())
        torch.testing.assert_close(theirs, mine, rtol=1e-3, atol=atol)


def trained(model: LanguageModel, sampler: Any, chosen: Any, objective: Any, **options: Any):
    scores = dict(Fisher().score(model, tiny_tokens().split(2)))
    before = weights_of(model)
    adapter = tune(
        model, tiny_tokens(), chosen(model), sampler, objective, settings(**options),
        sensitivities=scores,
    )  # fmt: skip
    assert all(torch.equal(weight, before[name]) for name, weight in weights_of(model).items())
    return adapter


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"draw": "epoch"},
        {"dropout": 0.3},
        {"terms": "one", "balance": True, "noise_bits": (3, 4)},
        {"layers": "mlp", "adapter_skip": ("q_proj",)},
    ],
    ids=str,
)
def test_every_way_to_tune(options: dict[str, Any]) -> None:
    one, other = (
        trained(make(), ChannelUniform(), some, KL(), **options) for make in (resident, streamed)
    )
    assert_alike(one, other)


def test_noise_that_remembers_is_the_same_in_both_passes() -> None:
    """Codebooks move at every draw: a second draw for the backward pass would differ."""
    one, other = (
        trained(make(), Residual(quantizers=("kmeans",)), everywhere, KL())
        for make in (resident, streamed)
    )
    assert_alike(one, other)


def test_a_step_brings_each_block_four_times() -> None:
    """Two terms, each forward and back; the last two blocks are still there at the turn."""
    model = streamed()
    assert model.stream is not None
    chosen = some(model)
    tune(model, tiny_tokens(windows=2), chosen, StepUniform(), CrossEntropy(), settings(epochs=1))
    assert model.stream.loads <= 2 * (4 + 2)


def random_adapter() -> Adapter:
    return tune(
        resident(), tiny_tokens(), some(resident()), StepUniform(), CrossEntropy(),
        settings(lr=0.1),
    )  # fmt: skip


def test_merging_and_evaluation() -> None:
    adapter = random_adapter()
    found = []
    for model in (resident(), streamed()):
        merged = merge(model, adapter)
        assert (merged.stream is None) == (model.stream is None)
        found.append(evaluate(merged, Original(model, tiny_tokens())))
    assert found[0].kl > 0.01
    assert found[1].kl == pytest.approx(found[0].kl, rel=1e-4)
    assert found[1].perplexity == pytest.approx(found[0].perplexity, rel=1e-5)


@pytest.mark.parametrize("quantizer", [RTN(bits=3), KMeans(bits=3)], ids=lambda q: q.name)
def test_quantizers_of_single_matrices(quantizer: Any) -> None:
    logits: list[Tensor] = []
    for model in (resident(), streamed()):
        before = weights_of(model)
        scores = dict(Fisher().score(resident(), tiny_tokens().split(2)))
        quantized = quantizer.quantize(model, [], scores)
        assert (quantized.model.stream is None) == (model.stream is None)
        with torch.no_grad():
            logits.append(quantized.model.network(input_ids=tiny_tokens()).logits)
        assert all(torch.equal(weight, before[name]) for name, weight in weights_of(model).items())
    assert torch.equal(*logits)


def test_saved_as_an_ordinary_folder(tmp_path: Any) -> None:
    models.save(streamed(), tmp_path)
    loaded = models.load(str(tmp_path), device="cpu")
    with torch.no_grad():
        logits = [m.network(input_ids=tiny_tokens()).logits for m in (resident(), loaded)]
    assert torch.equal(*logits)


class WholeModel(RTN):
    """Wants the whole network at once, as GPTQ's and AWQ's libraries do."""

    name: ClassVar[str] = "whole"

    def quantize(self, *args: Any, **options: Any) -> QuantizedModel:
        return super().quantize(*args, **options)


def test_quantizers_of_whole_networks_are_not_available() -> None:
    able, unable = available([RTN(), WholeModel()], streamed(), Silent())
    assert [quantizer.name for quantizer in able] == ["rtn"]
    assert "--memory resident" in unable["whole-4"]
    assert len(available([RTN(), WholeModel()], resident(), Silent())[0]) == 2
