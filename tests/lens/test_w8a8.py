"""Weights and activations quantized together: a plain reference, and planted outliers."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import tiny_model, tiny_tokens
from torch import Tensor, nn

from npft.artifacts import LanguageModel
from npft.evaluation.quality import Original, evaluate
from npft.lens.measuring import Row, Settings, look
from npft.progress import Silent
from npft.quantizers import RTN, Nonuniform

TOKENS = tiny_tokens(6, 24)


def plain_rtn(matrix: np.ndarray, bits: int) -> np.ndarray:
    """Min-max rounding of every row on its own, in float32 with a float16 scale."""
    rounded = np.empty_like(matrix)
    for index, row in enumerate(matrix):
        low, high = min(row.min(), 0), max(row.max(), 0)
        if low == high:
            rounded[index] = 0
            continue
        scale = np.float32(high - low) / np.float32(2**bits - 1)
        zero = np.round(-low / scale)
        codes = np.clip(np.round(row / scale) + zero, 0, 2**bits - 1)
        rounded[index] = (codes - zero) * np.float32(np.float16(scale))
    return rounded


class PlainW8A8(nn.Module):
    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = torch.from_numpy(plain_rtn(linear.weight.detach().numpy(), 8))
        self.bias = linear.bias

    def forward(self, inputs: Tensor) -> Tensor:
        rows = plain_rtn(inputs.reshape(-1, inputs.shape[-1]).detach().numpy(), 8)
        return nn.functional.linear(torch.from_numpy(rows).view_as(inputs), self.weight, self.bias)


def row(model: LanguageModel, quantizer: RTN | Nonuniform) -> Row:
    settings = Settings(targets=["both"], intensities=[0.1], only=["gaussian"])
    rows = look(model, {"text": TOKENS}, settings, Silent(), [quantizer])
    return next(r for r in rows if r.kind == quantizer.label and r.intensity is None)


def test_w8a8_is_the_plain_reference() -> None:
    model = tiny_model()
    by_hand = model.copy()
    for name in by_hand.layers:
        linear = by_hand.network.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        by_hand.network.set_submodule(name, PlainW8A8(linear))
    expected = evaluate(by_hand, Original(model, TOKENS))
    found = row(model, RTN(bits=8))
    assert found.kl == pytest.approx(expected.kl, rel=1e-3)
    assert found.perplexity == pytest.approx(expected.perplexity, rel=1e-4)
    assert found.kl > 1e-5


@pytest.fixture
def outliers(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    return importlib.import_module("outliers")


def test_planted_outliers_break_uniform_w8a8_and_not_the_cube_root(outliers) -> None:
    clean, heavy = tiny_model(), outliers.plant(tiny_model(), 128)
    same = evaluate(heavy, Original(clean, TOKENS))
    assert abs(same.kl) < 1e-6
    before, after = row(clean, RTN(bits=8)).kl, row(heavy, RTN(bits=8)).kl
    root_before, root_after = row(clean, Nonuniform(bits=8)).kl, row(heavy, Nonuniform(bits=8)).kl
    assert before < root_before
    assert after > 100 * before
    assert root_after < after / 20
    assert root_after < 10 * root_before


def test_the_benchmark_measures_what_the_lens_does(outliers) -> None:
    model = tiny_model()
    before = {name: value.clone() for name, value in model.network.state_dict().items()}
    found = {(r["setting"], r["quantizer"]): r["kl"] for r in outliers.measured(model, TOKENS, 16)}
    assert len(found) == 9
    heavy = outliers.plant(tiny_model(), 16)
    assert found["W8A8", "rtn-8"] == row(heavy, RTN(bits=8)).kl
    assert found["W8A8", "nonuniform-8"] == row(heavy, Nonuniform(bits=8)).kl
    after = model.network.state_dict()
    assert all(torch.equal(value, before[name]) for name, value in after.items())
