"""Eq. 3 against a closed form and against one backward pass per sequence."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from tiny import tiny_model, tiny_tokens
from torch import Tensor, nn

from npft.adapters import attached
from npft.artifacts import LanguageModel, LinearLayer
from npft.errors import NpftError
from npft.scorers import Fisher, squares
from npft.testing import check_scorer


def scores(model: LanguageModel, tokens: Tensor, batch: int) -> dict[str, Tensor]:
    return dict(Fisher().score(model, tokens.split(batch)))


def per_sequence(model: LanguageModel, tokens: Tensor) -> dict[str, Tensor]:
    """The squared gradient of transformers' own loss, one sequence at a time."""
    weights = {name: layer.module.weight for name, layer in model.layers.items()}
    totals = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for sequence in tokens:
        for weight in weights.values():
            weight.requires_grad_(True)
        loss = model.network(input_ids=sequence[None], labels=sequence[None]).loss
        gradients = torch.autograd.grad(loss, list(weights.values()))
        for name, gradient in zip(weights, gradients, strict=True):
            totals[name] += gradient.square()
    model.network.requires_grad_(False)
    return {n: t.T if model.layers[n].transposed else t for n, t in totals.items()}


class OneLayer(nn.Module):
    """Embedding, one linear layer, softmax: small enough to differentiate by hand."""

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.linear = nn.Linear(width, vocabulary, bias=False)
        self.requires_grad_(False)

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding

    def forward(self, input_ids: Tensor, **_: object) -> SimpleNamespace:
        return SimpleNamespace(logits=self.linear(self.embedding(input_ids)))


class Routed(OneLayer):
    """Sends only every other token of a flattened batch through its layer, as experts do."""

    def forward(self, input_ids: Tensor, **_: object) -> SimpleNamespace:
        flat = self.embedding(input_ids).flatten(0, 1)
        logits = torch.zeros(len(flat), self.linear.out_features)
        logits = logits.index_add(0, torch.arange(0, len(flat), 2), self.linear(flat[::2]))
        return SimpleNamespace(logits=logits.view(*input_ids.shape, -1))


def test_contract() -> None:
    check_scorer(Fisher())


def test_closed_form_of_softmax_regression() -> None:
    """dL/dW = mean over t of (softmax(W x_t) - onehot(next)) x_t^T, squared, summed over b."""
    network = OneLayer(vocabulary=11, width=5)
    layer = LinearLayer("linear", network.linear, "mlp")
    model = LanguageModel(network, None, {"linear": layer})  # type: ignore[arg-type]
    tokens = torch.randint(11, (3, 6), generator=torch.Generator().manual_seed(0))
    expected = torch.zeros(11, 5, dtype=torch.float64)
    weight, embedding = network.linear.weight.double(), network.embedding.weight.double()
    for sequence in tokens.tolist():
        gradient = torch.zeros_like(expected)
        for token, following in pairwise(sequence):
            residual = (weight @ embedding[token]).softmax(0)
            residual[following] -= 1
            gradient += torch.outer(residual, embedding[token]) / 5
        expected += gradient**2
    found = scores(model, tokens, batch=2)["linear"]
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-10)


@pytest.mark.parametrize("architecture", ["Llama", "GPT2", "OPT", "GPTNeoX", "Gemma"])
@pytest.mark.parametrize("batch", [1, 2, 4])
def test_per_sequence_autograd(architecture: str, batch: int) -> None:
    model, tokens = tiny_model(architecture), tiny_tokens(windows=4)
    expected = per_sequence(model, tokens)
    found = scores(model, tokens, batch)
    assert list(found) == list(model.layers)
    for name, values in expected.items():
        largest = float(values.max())
        assert largest > 0
        torch.testing.assert_close(found[name], values, rtol=1e-3, atol=1e-5 * largest)


def test_sequences_are_squared_before_they_are_summed() -> None:
    """Twice the same text doubles the scores; a gradient of the sum would quadruple them."""
    model, tokens = tiny_model(), tiny_tokens(windows=1)
    once, twice = scores(model, tokens, 1), scores(model, tokens.repeat(2, 1), 2)
    for name in once:
        torch.testing.assert_close(twice[name], 2 * once[name], rtol=1e-3, atol=0)


def test_sequences_that_cannot_be_told_apart_are_refused() -> None:
    network = Routed(vocabulary=11, width=5)
    layer = LinearLayer("linear", network.linear, "mlp")
    model = LanguageModel(network, None, {"linear": layer})  # type: ignore[arg-type]
    tokens = torch.randint(11, (3, 6), generator=torch.Generator().manual_seed(0))
    with pytest.raises(NpftError, match="layer linear mixes the sequences of a batch"):
        scores(model, tokens, batch=3)
    network.linear.weight.requires_grad_()
    expected = torch.zeros(11, 5)
    for sequence in tokens:
        predicted = network(sequence[None]).logits[0, :-1]
        loss = nn.functional.cross_entropy(predicted, sequence[1:])
        expected += torch.autograd.grad(loss, network.linear.weight)[0].square()
    torch.testing.assert_close(scores(model, tokens, batch=1)["linear"], expected)


def test_each_matrix_is_given_away() -> None:
    model = tiny_model()
    alive: list[weakref.ref[Tensor]] = []
    for item in Fisher().score(model, [tiny_tokens()]):
        alive.append(weakref.ref(item[1]))
        del item
        assert alive[-1]() is None
    assert len(alive) == len(model.layers)


def test_a_failure_leaves_no_hooks() -> None:
    model = tiny_model()

    def broken() -> Iterator[Tensor]:
        yield tiny_tokens()
        raise OSError("the text went away")

    with pytest.raises(OSError, match="the text went away"):
        list(Fisher().score(model, broken()))
    assert not any(module._forward_hooks for module in model.network.modules())


def test_an_adapter_is_scored_at_its_effective_weights_and_keeps_its_gradients() -> None:
    model, tokens = tiny_model(), tiny_tokens()
    names = list(model.layers)
    with attached(model, names, rank=2, alpha=4, dropout=0, seed=0) as (wrapped, adapted):
        trained = [p for p in wrapped.parameters() if p.requires_grad]
        with torch.no_grad():
            for parameter in trained:
                parameter.normal_(generator=torch.Generator().manual_seed(1)).mul_(0.1)
        with torch.enable_grad():
            found = scores(adapted, tokens, 2)
        assert all(parameter.grad is None for parameter in trained)
        effective = {name: layer.weight for name, layer in adapted.layers.items()}
    gc.collect()
    plain = tiny_model()
    for name, layer in plain.layers.items():
        layer.weight.copy_(effective[name])
    expected = scores(plain, tokens, 2)
    unadapted = scores(model, tokens, 2)
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values, rtol=1e-2, atol=1e-4 * float(values.max()))
        assert not torch.allclose(found[name], unadapted[name], rtol=0.1)


@pytest.mark.parametrize("wanted", [torch.bfloat16, torch.float16])
def test_half_precision_models_get_float32_scores(wanted: torch.dtype) -> None:
    model = tiny_model()
    model.network.to(wanted)
    found = scores(model, tiny_tokens(), 2)
    expected = scores(tiny_model(), tiny_tokens(), 2)
    for name, values in found.items():
        assert values.dtype == torch.float32
        correlation = torch.corrcoef(torch.stack([values.flatten(), expected[name].flatten()]))
        assert correlation[0, 1] > 0.95


def test_sequences_are_squared_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """With room for three sequences' gradients, a batch of eight is 3 + 3 + 2; for none, 1 each."""
    model, tokens = tiny_model(), tiny_tokens(windows=8)
    whole = scores(model, tokens, 8)
    for at_once in (3 * 4 * 32 * 64, 1):
        monkeypatch.setattr(squares, "AT_ONCE", at_once)
        for name, values in scores(model, tokens, 8).items():
            torch.testing.assert_close(values, whole[name], rtol=1e-5, atol=0)
