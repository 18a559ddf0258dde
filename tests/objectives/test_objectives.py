"""The built-in objectives."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from tiny import tiny_model, tiny_tokens

from npft.contracts import Objective
from npft.objectives import KL, CrossEntropy
from npft.testing import check_objective


@pytest.mark.parametrize("objective", [CrossEntropy(), CrossEntropy(labels="last"), KL()], ids=repr)
def test_contract(objective: Objective) -> None:
    check_objective(objective)


@pytest.mark.parametrize("architecture", ["Llama", "GPT2"])
def test_cross_entropy_is_that_of_transformers(architecture: str) -> None:
    model, tokens = tiny_model(architecture), tiny_tokens()
    with torch.no_grad():
        output = model.network(input_ids=tokens, labels=tokens)
    found = CrossEntropy().loss(output, tokens, None)
    assert float(found) == pytest.approx(float(output.loss), abs=1e-5)


def test_the_last_label_of_each_window_alone() -> None:
    """What transformers gives where every other label is masked by -100."""
    model, tokens = tiny_model(), tiny_tokens()
    labels = torch.full_like(tokens, -100)
    labels[:, -1] = tokens[:, -1]
    with torch.no_grad():
        output = model.network(input_ids=tokens, labels=labels)
    found = CrossEntropy(labels="last").loss(output, tokens, None)
    assert float(found) == pytest.approx(float(output.loss), abs=1e-5)
    by_hand = -output.logits[:, -2].log_softmax(1)[torch.arange(len(tokens)), tokens[:, -1]]
    assert float(found) == pytest.approx(float(by_hand.mean()), abs=1e-5)


def test_kl_ignores_the_text_and_is_zero_for_the_original() -> None:
    model, tokens = tiny_model(), tiny_tokens()
    with torch.no_grad():
        output = model.network(input_ids=tokens)
    assert float(KL().loss(output, tokens, output)) == 0.0
    other = SimpleNamespace(logits=output.logits * 1.5)
    found = KL().loss(other, tokens, output)
    assert found > 0
    assert torch.equal(found, KL().loss(other, tokens.flip(0), output))


def test_kl_is_the_mean_over_every_position() -> None:
    p = torch.tensor([[[0.5, 0.5], [0.9, 0.1]]])
    q = torch.tensor([[[0.25, 0.75], [0.9, 0.1]]])
    student, original = SimpleNamespace(logits=q.log()), SimpleNamespace(logits=p.log() + 3)
    found = KL().loss(student, torch.zeros(1, 2, dtype=torch.int64), original)
    # 0.5 ln(0.5 / 0.25) + 0.5 ln(0.5 / 0.75) at one of two positions, nothing at the other
    assert float(found) == pytest.approx(0.14384104 / 2, rel=1e-5)


def test_what_they_ask_for() -> None:
    assert (CrossEntropy.needs_original, CrossEntropy.needs_hidden_states) == (False, False)
    assert (KL.needs_original, KL.needs_hidden_states) == (True, False)
