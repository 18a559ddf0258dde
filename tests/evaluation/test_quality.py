"""Perplexity and KL against transformers' own loss and a plain loop in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from demonstration import demonstration_model
from tiny import CONFIGS, tiny_model, tiny_tokens
from torch import Tensor

from npft import data, models
from npft.artifacts import LanguageModel
from npft.evaluation.quality import Original, evaluate, predict
from npft.quantizers import RTN


def own_perplexity(model: LanguageModel, windows: Tensor) -> float:
    """``exp`` of the mean of transformers' loss over windows of equal length."""
    with torch.no_grad():
        losses = [float(model.network(input_ids=w[None], labels=w[None]).loss) for w in windows]
    return math.exp(sum(losses) / len(losses))


def brute_force_kl(model: LanguageModel, original: LanguageModel, windows: Tensor) -> float:
    """Mean over the predictions that perplexity counts: all but each window's last."""
    total, positions = 0.0, 0
    for window in windows:
        with torch.no_grad():
            q, p = (m.network(input_ids=window[None]).logits[0] for m in (model, original))
        for mine, theirs in zip(q[:-1].double().numpy(), p[:-1].double().numpy(), strict=True):
            log_q = mine - np.logaddexp.reduce(mine)
            log_p = theirs - np.logaddexp.reduce(theirs)
            total += float((np.exp(log_p) * (log_p - log_q)).sum())
            positions += 1
    return total / positions


@pytest.mark.parametrize("architecture", CONFIGS)
def test_perplexity_is_that_of_transformers(architecture: str) -> None:
    model, windows = tiny_model(architecture), tiny_tokens(windows=5)
    quality = evaluate(model, Original(model, windows))
    assert quality.perplexity == pytest.approx(own_perplexity(model, windows), rel=1e-5)


@pytest.mark.parametrize("architecture", ["Llama", "GPT2"])
@pytest.mark.parametrize("cache_bytes", [0, 2**30])
def test_kl_and_perplexity_of_another_model(architecture: str, cache_bytes: int) -> None:
    model, windows = tiny_model(architecture), tiny_tokens(windows=5)
    original = Original(model, windows, cache_bytes=cache_bytes)
    errors = []
    for bits in (2, 4):
        quantized = RTN(bits=bits).quantize(model, []).model
        quality = evaluate(quantized, original)
        expected = brute_force_kl(quantized, model, windows)
        assert quality.kl == pytest.approx(expected, rel=1e-4, abs=1e-6)
        assert quality.perplexity == pytest.approx(own_perplexity(quantized, windows), rel=1e-5)
        errors.append(quality.kl)
    assert errors[0] > errors[1] > 0


def test_keeping_predictions_changes_no_number() -> None:
    """Windows of 512 tokens are evaluated one by one, so that there are several batches."""
    model = tiny_model(max_position_embeddings=512)
    other = RTN(bits=3).quantize(model, []).model
    windows = tiny_tokens(windows=3, context=512)
    kept, fresh = Original(model, windows), Original(model, windows, cache_bytes=0)
    assert len(kept.batches) == 3
    first = evaluate(other, kept)
    assert evaluate(other, kept) == first == evaluate(other, fresh)
    assert kept.logits(1) is kept.logits(1)
    assert fresh.logits(1) is not fresh.logits(1)


def test_the_limit_of_what_is_kept_is_in_bytes() -> None:
    model, windows = tiny_model(), tiny_tokens(windows=3, context=16)
    size = 3 * 16 * 256 * 4
    for limit, keeps in ((size, True), (size - 1, False)):
        original = Original(model, windows, cache_bytes=limit)
        assert (original.logits(0) is original.logits(0)) == keeps


@pytest.mark.parametrize("architecture", ["Llama", "OPT", "GPT2"])
@pytest.mark.parametrize("copied", [False, True])
def test_the_original_has_no_divergence_from_itself(architecture: str, copied: bool) -> None:
    model, windows = tiny_model(architecture), tiny_tokens(windows=3)
    original = Original(model, windows)
    assert evaluate(model.copy() if copied else model, original).kl == 0.0


@pytest.mark.parametrize(("windows", "context"), [(1, 2), (4, 16), (33, 20)])
def test_predicted_tokens_are_counted(windows: int, context: int) -> None:
    model = tiny_model()
    quality = evaluate(model, Original(model, tiny_tokens(windows, context)))
    assert (quality.tokens, quality.context) == (windows * (context - 1), context)


def test_a_uniform_model_has_the_perplexity_of_its_vocabulary() -> None:
    model = tiny_model(tie_word_embeddings=False)
    with torch.no_grad():
        model.network.lm_head.weight.zero_()
    quality = evaluate(model, Original(model, tiny_tokens()))
    assert quality.perplexity == pytest.approx(256, rel=1e-5)


def test_a_hopeless_model_gets_a_finite_perplexity_and_a_broken_one_nan() -> None:
    model, windows = tiny_model(tie_word_embeddings=False), tiny_tokens()
    original = Original(model, windows)
    hopeless, broken = model.copy(), model.copy()
    with torch.no_grad():
        hopeless.network.lm_head.weight.mul_(1e6)
        broken.network.lm_head.weight[0, 0] = math.nan
    assert 1e300 < evaluate(hopeless, original).perplexity < math.inf
    assert math.isnan(evaluate(broken, original).perplexity)
    assert math.isnan(evaluate(broken, original).kl)


def test_predict_needs_no_gradients_and_gives_all_positions() -> None:
    model, windows = tiny_model(), tiny_tokens()
    logits = predict(model, windows)
    assert logits.shape == (*windows.shape, 256)
    assert not logits.requires_grad


def test_perplexity_of_smollm2_is_that_of_transformers() -> None:
    model = models.load(demonstration_model(), device="cpu")
    text = data.load_text(data.BUILTIN, "held-back")
    windows = data.windows(model.tokenizer, text, 256)[:8]
    quality = evaluate(model, Original(model, windows))
    assert quality.perplexity == pytest.approx(own_perplexity(model, windows), rel=1e-3)
    assert quality.tokens == 8 * 255
    assert 5 < quality.perplexity < 100
