"""Block by block, the scores are those of the whole model at once."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from tiny import CONFIGS, tiny_model, tiny_tokens
from torch import Tensor, nn

from npft import models
from npft.adapters import attached
from npft.artifacts import LanguageModel
from npft.errors import NpftError
from npft.scorers import Fisher, squares

CPU = torch.device("cpu")


def streamed(architecture: str = "Llama", **changes: Any) -> LanguageModel:
    return models.streamed(tiny_model(architecture, **changes), CPU)


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        largest = float(values.max())
        assert largest > 0
        torch.testing.assert_close(found[name], values, rtol=1e-3, atol=1e-5 * largest)


@pytest.mark.parametrize("architecture", CONFIGS)
@pytest.mark.parametrize("batch", [1, 3])
def test_resident_scores(architecture: str, batch: int) -> None:
    batches = tiny_tokens(windows=4).split(batch)
    expected = dict(Fisher().score(tiny_model(architecture), batches))
    assert_same(dict(Fisher().score(streamed(architecture), batches)), expected)


def test_each_block_comes_once_forward_and_once_back() -> None:
    model = streamed(num_hidden_layers=5)
    names = [name for name, _ in Fisher().score(model, tiny_tokens().split(1))]
    blocks = [int(name.split(".")[2]) for name in names]
    assert blocks == sorted(blocks, reverse=True)
    assert sorted(names) == sorted(model.layers)
    assert model.stream is not None
    assert model.stream.loads == 5 + 3  # the last two are there when it turns round


def test_sums_of_one_block_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[weakref.ref[squares.Squares]] = []
    made = squares.Squares.__init__

    def noting(self: squares.Squares, *args: Any) -> None:
        gc.collect()
        assert sum(ref() is not None for ref in alive) <= 1  # the one whose last layer is out
        alive.append(weakref.ref(self))
        made(self, *args)

    monkeypatch.setattr(squares.Squares, "__init__", noting)
    for _ in Fisher().score(streamed(num_hidden_layers=5), tiny_tokens().split(2)):
        pass
    assert len(alive) == 5


def test_an_adapter_is_scored_at_its_effective_weights() -> None:
    def scores(model: LanguageModel) -> dict[str, Tensor]:
        with attached(model, list(model.layers), rank=2, alpha=4, dropout=0, seed=0) as (w, a):
            with torch.no_grad():
                for parameter in w.parameters():
                    if parameter.requires_grad:
                        parameter.normal_(0, 0.1, generator=torch.Generator().manual_seed(1))
            return dict(Fisher().score(a, tiny_tokens().split(2)))

    assert_same(scores(streamed()), scores(tiny_model()))


class Changing(nn.Module):
    """Does something to the hidden states between two blocks."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return self.decoder(hidden * 2, *args, **kwargs)


def test_networks_that_are_no_plain_chain_are_refused() -> None:
    model = streamed()
    blocks = model.network.model.layers
    blocks[1] = Changing(blocks[1])
    with pytest.raises(NpftError, match="does not hand the output of a block straight"):
        list(Fisher().score(model, [tiny_tokens()]))
