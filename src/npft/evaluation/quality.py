"""Perplexity, and divergence from the original model's predictions."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from npft.artifacts import LanguageModel
from npft.losses import divergence, sequence_losses
from npft.precision import tensor_cores
from npft.progress import Progress, Silent


@dataclass(frozen=True)
class Quality:
    """What one model scores on one text.

    Attributes:
        perplexity: ``exp`` of the mean next-token cross-entropy.
        kl: mean KL(original || model) in nats per token.
        tokens: how many tokens were predicted: ``windows * (context - 1)``.
        context: length of each window.
    """

    perplexity: float
    kl: float
    tokens: int
    context: int


class Original:
    """The original model's predictions on one text's windows, the reference of KL.

    They are kept if they fit into ``cache_bytes``, else computed again for each model compared.
    """

    def __init__(self, model: LanguageModel, windows: Tensor, *, cache_bytes: int = 2**30) -> None:
        self.model = model
        self.windows = windows
        at_once = 4096 if model.device.type == "cuda" else 512
        self.batches = windows.split(max(1, at_once // windows.shape[1]))
        self._fits = windows.numel() * model.vocabulary * 4 <= cache_bytes
        self._cache: dict[int, Tensor] = {}

    def logits(self, index: int) -> Tensor:
        """Logits ``(batch, context, vocabulary)`` of batch ``index``."""
        if index in self._cache:
            return self._cache[index]
        predicted = predict(self.model, self.batches[index])
        if self._fits:
            self._cache[index] = predicted
        return predicted


def evaluate(
    model: LanguageModel, original: Original, progress: Progress | None = None, label: str = "eval"
) -> Quality:
    """Perplexity and KL of ``model`` on the windows of ``original``.

    The KL of the original to itself is exactly 0.
    """
    count = len(original.batches)
    nll: list[float] = []
    kl: list[float] = []
    for index in (progress or Silent()).track(range(count), label, count):
        logits = predict(model, original.batches[index])
        tokens = original.batches[index].to(model.device)
        nll += sequence_losses(logits, tokens).tolist()
        if model is not original.model:
            pairs = zip(logits[:, :-1], original.logits(index)[:, :-1], strict=True)
            kl += [float(divergence(mine, theirs)) for mine, theirs in pairs]
    windows, context = original.windows.shape
    mean_nll, mean_kl = math.fsum(nll) / windows, math.fsum(kl) / windows
    return Quality(math.exp(min(mean_nll, 700.0)), mean_kl, windows * (context - 1), context)


def predict(model: LanguageModel, tokens: Tensor) -> Tensor:
    """Logits ``(batch, context, vocabulary)`` of ``tokens (batch, context)``, without gradients."""
    with torch.no_grad(), tensor_cores():
        logits: Tensor = model.network(input_ids=tokens.to(model.device), use_cache=False).logits
    return logits
