"""Cross-entropy and divergence against transformers and against numpy in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import CONFIGS, tiny_model, tiny_tokens
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from npft import losses
from npft.losses import divergence, sequence_losses


def logits(*shape: int, seed: int = 0, scale: float = 3.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def kl(student: Tensor, original: Tensor) -> float:
    p, q = softmax(original.double().numpy()), softmax(student.double().numpy())
    return float((p * (np.log(p) - np.log(q))).sum(-1).mean())


@pytest.mark.parametrize("architecture", CONFIGS)
def test_cross_entropy_is_that_of_transformers(architecture: str) -> None:
    model, tokens = tiny_model(architecture), tiny_tokens()
    with torch.no_grad():
        output = model.network(input_ids=tokens, labels=tokens)
        alone = [float(model.network(input_ids=t[None], labels=t[None]).loss) for t in tokens]
    found = sequence_losses(output.logits, tokens)
    assert found.tolist() == pytest.approx(alone, abs=1e-5)
    assert float(found.mean()) == pytest.approx(float(output.loss), abs=1e-5)
    assert len(set(alone)) == len(tokens)


def test_cross_entropy_of_uniform_predictions_is_the_log_of_the_vocabulary() -> None:
    found = sequence_losses(torch.zeros(2, 5, 7), torch.randint(7, (2, 5)))
    torch.testing.assert_close(found, torch.full((2,), 7.0).log())


def test_the_last_prediction_and_the_first_token_do_not_count() -> None:
    predicted, tokens = logits(2, 5, 7), torch.randint(7, (2, 5))
    before = sequence_losses(predicted, tokens)
    predicted[:, -1] = 100 * logits(2, 7, seed=1)
    tokens[:, 0] = (tokens[:, 0] + 1) % 7
    assert torch.equal(sequence_losses(predicted, tokens), before)
    tokens[:, 1] = (tokens[:, 1] + 1) % 7
    assert not torch.equal(sequence_losses(predicted, tokens), before)


@given(
    seed=st.integers(0, 1000),
    scale=st.floats(0.01, 20),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(2, 9)),
)
@settings(max_examples=100, deadline=None)
def test_divergence_against_numpy(seed: int, scale: float, shape: tuple[int, int, int]) -> None:
    student = logits(*shape, seed=seed, scale=scale)
    original = logits(*shape, seed=seed + 1, scale=scale)
    found = float(divergence(student, original))
    assert found == pytest.approx(kl(student, original), rel=1e-4, abs=1e-5)
    assert found >= -1e-6


@pytest.mark.parametrize("scale", [0.0, 1.0, 100.0])
def test_divergence_of_equals_is_zero(scale: float) -> None:
    same = logits(2, 3, 50, scale=scale)
    assert float(divergence(same.clone(), same)) == 0.0
    # a constant added to all logits of a position changes no prediction
    assert float(divergence(same + 2.0, same)) == pytest.approx(0.0, abs=1e-4)


def test_divergence_is_from_the_original_to_the_student() -> None:
    """KL is not symmetric: the original's probabilities are the weights of the mean."""
    student, original = logits(4, 9), logits(4, 9, seed=1)
    assert kl(student, original) != pytest.approx(kl(original, student), rel=0.05)
    assert float(divergence(student, original)) == pytest.approx(kl(student, original), rel=1e-5)


def test_gradient_of_divergence_in_closed_form() -> None:
    student, original = logits(2, 3, 9).requires_grad_(), logits(2, 3, 9, seed=1)
    divergence(student, original).backward()
    expected = (student.softmax(-1) - original.softmax(-1)) / 6
    torch.testing.assert_close(student.grad, expected, atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_compared_in_float32(dtype: torch.dtype) -> None:
    student, original = logits(2, 3, 50).to(dtype), logits(2, 3, 50, seed=1).to(dtype)
    found = divergence(student, original)
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(kl(student, original), rel=1e-5)
    tokens = torch.randint(50, (2, 3))
    assert torch.equal(sequence_losses(student, tokens), sequence_losses(student.float(), tokens))


def test_certain_predictions_stay_finite() -> None:
    student, original = torch.zeros(1, 3), torch.zeros(1, 3)
    student[0, 0], original[0, 1] = 1e4, 1e4
    assert float(divergence(student, original)) == pytest.approx(1e4)


@pytest.mark.parametrize("at_once", [1, 100, 10_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_parts_change_neither_losses_nor_gradients(
    dtype: torch.dtype, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against autograd through whole float32 copies: 30 rows of 50, one, two or all at a time."""
    monkeypatch.setattr(losses, "AT_ONCE", at_once)
    student = logits(3, 10, 50).to(dtype).requires_grad_()
    original, tokens = logits(3, 10, 50, seed=1).to(dtype), torch.randint(50, (3, 10))
    weights = torch.tensor([1.0, 2.0, -3.0])
    predicted = student.float()[:, :-1]
    each = F.cross_entropy(predicted.mT, tokens[:, 1:], reduction="none").mean(1)
    q, p = student.float().log_softmax(-1), original.float().log_softmax(-1)
    whole = (p.exp() * (p - q)).sum(-1).mean()
    for mine, theirs in (
        ((sequence_losses(student, tokens) * weights).sum(), (each * weights).sum()),
        (divergence(student, original) * 7, whole * 7),
    ):
        torch.testing.assert_close(mine, theirs)
        found, expected = (torch.autograd.grad(x, student)[0] for x in (mine, theirs))
        assert found.dtype == dtype
        torch.testing.assert_close(found, expected)


class Largest(TorchDispatchMode):
    """Notes the largest float32 tensor that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        result = function(*args, **(kwargs or {}))
        for made in result if isinstance(result, tuple) else (result,):
            if isinstance(made, Tensor) and made.dtype == torch.float32:
                self.numel = max(self.numel, made.numel())
        return result


def test_no_float32_copy_of_the_whole_logits_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "AT_ONCE", 200)
    student = logits(3, 10, 50).bfloat16().requires_grad_()
    original, tokens = logits(3, 10, 50, seed=1).bfloat16(), torch.randint(50, (3, 10))
    with Largest() as seen:
        sequence_losses(student, tokens).sum().backward()
        divergence(student, original).backward()
    assert 0 < seen.numel <= 200
    with Largest() as seen:
        F.cross_entropy(student.float().flatten(0, 1), tokens.flatten()).backward()
    assert seen.numel == student.numel()
