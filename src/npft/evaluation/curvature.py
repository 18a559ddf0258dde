"""Curvature of the loss at the outliers: the Hessian's trace, and what stands in for it.

The trace itself (eq. 4), the loss increase under noise that tuning lowers in its place (eq. 6),
and the Fisher mass that selects the outliers (eq. 3). Losses are mean next-token cross-entropy,
in nats per predicted token.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from npft.artifacts import LanguageModel, LinearLayer, Outliers
from npft.errors import NpftError
from npft.grid import Grid
from npft.samplers import StepUniform


@dataclass(frozen=True)
class Estimate:
    """The mean of independent samples, and the standard error of that mean."""

    value: float
    standard_error: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> Estimate:
        """From at least two samples."""
        error = statistics.stdev(samples) / math.sqrt(len(samples))
        return cls(statistics.fmean(samples), error)


class FisherMass(NamedTuple):
    """Sums of sensitivities: of the outliers, and of all weights."""

    outliers: float
    total: float


def hessian_trace(
    model: LanguageModel,
    outliers: Mapping[str, Outliers],
    batches: Sequence[Tensor],
    *,
    probes: int,
    random: torch.Generator,
) -> Estimate:
    r"""Hutchinson's estimate of the trace of the loss's Hessian at the outliers (eq. 4).

    .. math:: \mathrm{Tr}(H) = \mathbb{E}_z[z^T H z]

    z is 1 or -1 with equal chance at the outliers of all layers together, and 0 elsewhere. The
    Hessian-vector products are exact. Each batch gets probes of its own, so that its graph is
    built once and serves them all.

    Args:
        model: its weights and gradient flags are left as they are.
        outliers: positions per layer; layers that are not named have none.
        batches: token ids, each ``(batch, context)``.
        probes: how many z, at least 2.
        random: the only source of randomness, on the model's device.

    Returns:
        The trace in nats per token and squared unit of weight; the error is over the probes.

    Raises:
        NpftError: too few probes, no batches, no outliers or some of another model, or weights
            in half precision.
    """
    _check(model, outliers, batches, probes, "probes")
    chosen = _chosen(model, outliers)
    samples = [0.0] * probes
    # The fused attention kernels have no second derivative.
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), _differentiable(chosen) as weights:
        for tokens, share in _shares(batches):
            first = torch.autograd.grad(
                _loss(model, tokens), weights, create_graph=True, materialize_grads=True
            )
            slopes = _taken(chosen, first)
            for index in range(probes):
                z = [_signs(slope, random) for slope in slopes]
                product = torch.autograd.grad(
                    _dot(slopes, z), weights, retain_graph=True, materialize_grads=True
                )
                samples[index] += share * float(_dot(_taken(chosen, product), z))
            del first, slopes
    return Estimate.of(samples)


def noise_estimate(
    model: LanguageModel,
    outliers: Mapping[str, Outliers],
    batches: Sequence[Tensor],
    grid: Grid,
    *,
    draws: int,
    random: torch.Generator,
) -> Estimate:
    r"""The loss increase under noise as wide as a step of the grid, at the outliers (eq. 6).

    .. math:: \mathbb{E}_z[L(W + z) - L(W)], \quad z \sim U[-\Delta/2, \Delta/2]

    Every z is used with both signs, which leaves the expectation as it is and cancels the
    first-order term that eq. 5 neglects. What is left is near :math:`\sum_i H_{ii}\Delta_i^2/24`.
    Rounding in float32 leaves an error near 1e-8 of the loss.

    Args:
        model: noise is put on its weights, and taken off exactly, also on an exception.
        outliers: positions per layer; layers that are not named have none.
        batches: token ids, each ``(batch, context)``.
        grid: the target of quantization; its steps are those of the model's own weights.
        draws: how many z, at least 2.
        random: the only source of randomness, on the model's device.

    Returns:
        The increase in nats per token; the error is over the draws.

    Raises:
        NpftError: too few draws, no batches, no outliers or some of another model, weights in
            half precision, or a group size that does not divide a layer's inputs.
    """
    _check(model, outliers, batches, draws, "draws")
    chosen, sampler = _chosen(model, outliers), StepUniform()
    with torch.no_grad():
        before = _mean_loss(model, batches)
        samples = []
        for _ in range(draws):
            z = [
                sampler.sample(layer.weight, found.indices(model.device), grid, random)
                for layer, found in chosen
            ]
            increases = []
            for sign in (1, -1):
                with _shifted(chosen, [sign * noise for noise in z]):
                    increases.append(_mean_loss(model, batches) - before)
            samples.append(statistics.fmean(increases))
    return Estimate.of(samples)


def fisher_mass(
    scores: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]], outliers: Mapping[str, Outliers]
) -> FisherMass:
    """How much of all sensitivity lies on the outliers (eq. 3 summed).

    Args:
        scores: sensitivities ``(out, in)`` by layer, or a scorer's stream of them, of which one
            matrix is held at a time.
        outliers: positions per layer; layers that are not named count in the total only.

    Raises:
        NpftError: the outliers of a layer have another shape than its scores, or no scores.
    """
    on_outliers, total, missing = 0.0, 0.0, set(outliers)
    for name, values in scores.items() if isinstance(scores, Mapping) else scores:
        total += float(values.sum(dtype=torch.float64))
        if name in outliers:
            missing.discard(name)
            _check_shape(name, outliers[name], values)
            on_outliers += float(outliers[name].take(values).sum(dtype=torch.float64))
        del values  # before the scorer makes the next
    if missing:
        raise NpftError(f"layer {min(missing)} has outliers but no scores: score the same model")
    return FisherMass(on_outliers, total)


def _check(
    model: LanguageModel,
    outliers: Mapping[str, Outliers],
    batches: Sequence[Tensor],
    samples: int,
    what: str,
) -> None:
    if samples < 2:
        raise NpftError(f"{what}={samples} gives no standard error: ask for at least 2")
    if not batches or any(tokens.shape[1] < 2 for tokens in batches):
        raise NpftError("there is no next token to predict: give batches of at least 2 tokens")
    if not any(len(found) for found in outliers.values()):
        raise NpftError("there are no outliers to measure: select with a larger gamma")
    for name, found in outliers.items():
        if name not in model.layers:
            raise NpftError(f"the model has no layer {name}: select outliers of the same model")
        weight = model.layers[name].weight
        _check_shape(name, found, weight)
        if torch.finfo(weight.dtype).bits < 32:
            kind = str(weight.dtype).removeprefix("torch.")
            raise NpftError(f"curvature is lost in {kind}: load the model as float32")


def _check_shape(name: str, found: Outliers, matrix: Tensor) -> None:
    if found.shape != tuple(matrix.shape):
        raise NpftError(
            f"layer {name} has shape {tuple(matrix.shape)}, but its outliers are of "
            f"{found.shape}: select outliers of the same model"
        )


_Chosen = list[tuple[LinearLayer, Outliers]]


def _chosen(model: LanguageModel, outliers: Mapping[str, Outliers]) -> _Chosen:
    """The layers with outliers, in the model's order."""
    known = [(layer, outliers.get(name)) for name, layer in model.layers.items()]
    return [(layer, found) for layer, found in known if found is not None and len(found)]


@contextmanager
def _differentiable(chosen: _Chosen) -> Iterator[list[nn.Parameter]]:
    """Within this scope the parameters of these layers need gradients, as they are stored."""
    with ExitStack() as stack:
        weights: list[nn.Parameter] = []
        for layer, _ in chosen:
            weight: nn.Parameter = layer.module.weight  # type: ignore[assignment]
            stack.callback(weight.requires_grad_, weight.requires_grad)
            weight.requires_grad_(True)
            weights.append(weight)
        yield weights


@contextmanager
def _shifted(chosen: _Chosen, noise: Sequence[Tensor]) -> Iterator[None]:
    """Within this scope the outliers carry ``noise``, one ``(k,)`` per layer."""
    with ExitStack() as stack:
        for (layer, found), shift in zip(chosen, noise, strict=True):
            values = found.take(layer.weight)
            stack.callback(found.put_, layer.weight, values)
            found.put_(layer.weight, values + shift)
        yield


def _shares(batches: Sequence[Tensor]) -> Iterator[tuple[Tensor, float]]:
    """Each batch with its share of all predicted tokens."""
    counts = [tokens.shape[0] * (tokens.shape[1] - 1) for tokens in batches]
    for tokens, count in zip(batches, counts, strict=True):
        yield tokens, count / sum(counts)


def _mean_loss(model: LanguageModel, batches: Sequence[Tensor]) -> float:
    return math.fsum(share * float(_loss(model, tokens)) for tokens, share in _shares(batches))


def _loss(model: LanguageModel, tokens: Tensor) -> Tensor:
    tokens = tokens.to(model.device)
    logits = model.network(input_ids=tokens, use_cache=False).logits[:, :-1].float()
    each = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
    # A float32 mean would round away the increase under small noise.
    return each.double().mean()


def _taken(chosen: _Chosen, gradients: Sequence[Tensor]) -> list[Tensor]:
    """Gradients ``(k,)`` at the outliers, from those of whole parameters as they are stored."""
    return [
        found.take(gradient.T if layer.transposed else gradient)
        for (layer, found), gradient in zip(chosen, gradients, strict=True)
    ]


def _signs(like: Tensor, random: torch.Generator) -> Tensor:
    """Rademacher: 1 or -1 with equal chance."""
    bits = torch.randint(2, like.shape, generator=random, device=like.device)
    return (2 * bits - 1).to(like.dtype)


def _dot(left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
    """The dot product of two vectors that are kept by layer."""
    return torch.stack([(a * b).sum() for a, b in zip(left, right, strict=True)]).sum()
