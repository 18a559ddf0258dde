"""KL and perplexity under every kind of perturbation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from npft.artifacts import LanguageModel
from npft.contracts import Quantizer, Scorer
from npft.errors import NpftError
from npft.evaluation.quality import Original, evaluate
from npft.lens import residuals
from npft.lens.applying import Change, Seen, on_activations, on_weights
from npft.lens.kinds import Perturb, clipped_share, kinds
from npft.progress import Progress
from npft.seeding import generator

Target = Literal["weights", "activations", "both"]
CLIPPED = (0.001, 0.01)
"""Shares that are clipped at their own size, whatever its norm."""


@dataclass(frozen=True)
class Row:
    """One perturbation and what it costs.

    Attributes:
        target: ``weights``, ``activations`` (inputs of linear layers) or ``both``.
        intensity: L2 norm of the perturbation over that of what it perturbs, as asked for; None
            where the perturbation has its own size.
        norm: the same as measured, a mean over layers; of the weights where both are perturbed.
        correlation: of the sizes of perturbation and value, likewise.
        kl: from the unperturbed model, nats per token.
    """

    target: Target
    kind: str
    intensity: float | None
    norm: float
    correlation: float
    dataset: str
    kl: float
    perplexity: float
    tokens: int
    context: int


@dataclass(frozen=True)
class Settings:
    """What to look at. ``share`` of the values of a vector are its outliers."""

    targets: Sequence[Target] = ("weights", "activations")
    intensities: Sequence[float] = (0.03, 0.1, 0.3)
    share: float = 0.01
    only: Sequence[str] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.intensities or not all(0 < value < 1 for value in self.intensities):
            raise NpftError(
                f"intensities {', '.join(map(str, self.intensities)) or '(none)'} must be above 0 "
                "and below 1: they are shares of the norm of what is perturbed"
            )
        if not 0 < self.share < 1:
            raise NpftError(f"share={self.share:g} must be above 0 and below 1: try 0.01")
        known = list(kinds(self.share))
        for name in self.only:
            if name not in known:
                raise NpftError(f"perturbation {name!r} is unknown: there is {', '.join(known)}")

    def kinds(self) -> dict[str, Perturb]:
        """The kinds that are wanted."""
        every = kinds(self.share)
        return {name: every[name] for name in self.only or every}


@dataclass(frozen=True)
class _Case:
    target: Target
    kind: str
    intensity: float | None
    weights: Change
    activations: Callable[[], Change]


def look(
    model: LanguageModel,
    texts: Mapping[str, Tensor],
    settings: Settings,
    progress: Progress,
    quantizers: Sequence[Quantizer] = (),
    calibration: Sequence[Tensor] = (),
    scorer: Scorer | None = None,
) -> list[Row]:
    """Perturb a copy of the model in every way, one after the other.

    Args:
        model: left as it is.
        texts: windows ``(n, context)`` by name.
        calibration: batches, for quantizers and the scorer.
        scorer: for quantizers that need sensitivities.

    Raises:
        Unavailable: a quantizer cannot do what is asked of it here.
    """
    if set(settings.targets) != {"weights"}:
        for quantizer in quantizers:
            residuals.of_tokens(quantizer, None)  # what cannot be done is told before any work
    originals = {name: Original(model, windows) for name, windows in texts.items()}
    copy = model.copy()
    rows = []
    for name, original in originals.items():
        own = evaluate(model, original)
        rows.append(
            Row("weights", "none", None, 0.0, 0.0, name, 0.0, own.perplexity, own.tokens,
                own.context)
        )  # fmt: skip
    per_target = len(settings.kinds()) * len(settings.intensities) + len(CLIPPED)
    per_target += len(quantizers) * (len(settings.intensities) + 1)
    total = per_target * len(settings.targets)
    cases = _cases(model, settings, quantizers, calibration, scorer)
    for case in progress.track(cases, "lens", total):
        for name, original in originals.items():
            rows.append(_measure(copy, case, name, original))
    return rows


def _measure(model: LanguageModel, case: _Case, dataset: str, original: Original) -> Row:
    seen = {"weights": Seen(), "activations": Seen()}
    with ExitStack() as scope:
        if case.target != "activations":
            scope.enter_context(on_weights(model, case.weights, seen["weights"]))
        if case.target != "weights":
            scope.enter_context(on_activations(model, case.activations(), seen["activations"]))
        found = evaluate(model, original)
    told = seen["activations" if case.target == "activations" else "weights"]
    return Row(
        case.target, case.kind, case.intensity, told.norm, told.correlation, dataset,
        found.kl, found.perplexity, found.tokens, found.context,
    )  # fmt: skip


def _cases(
    model: LanguageModel,
    settings: Settings,
    quantizers: Sequence[Quantizer],
    calibration: Sequence[Tensor],
    scorer: Scorer | None,
) -> Iterator[_Case]:
    def drawn(perturb: Perturb, kind: str, intensity: float, place: str) -> Change:
        # One stream per kind and place: what else is measured does not move it, and the same
        # draws at every intensity leave only their size to differ.
        random = generator(settings.seed, f"lens {kind} {place}", model.device)
        return lambda _name, values: perturb(values, intensity, random)

    for target in settings.targets:
        for kind, perturb in settings.kinds().items():
            for value in settings.intensities:
                make = partial(drawn, perturb, kind, value)
                yield _Case(target, kind, value, _fresh(make), partial(make, "activations"))
        for share in CLIPPED:
            clip = partial(_clip, share)
            yield _Case(target, f"clip-{share:.1%}", None, clip, partial(_same, clip))
    known = _sensitivities(model, quantizers, calibration, scorer)
    for quantizer in quantizers:
        own = (
            residuals.of_weights(model, quantizer, calibration, known)
            if set(settings.targets) != {"activations"}
            else {}
        )
        for target in settings.targets:
            for size in (None, *settings.intensities):
                yield _Case(
                    target,
                    quantizer.label,
                    size,
                    residuals.stored(own, size),
                    partial(residuals.of_tokens, quantizer, size),
                )


def _fresh(make: Callable[[str], Change]) -> Change:
    """One stream per layer's name, so that every text meets the same perturbed weights."""
    return lambda name, values: make(name)(name, values)


def _clip(share: float, _name: str, values: Tensor) -> Tensor:
    return clipped_share(values, share)


def _same(change: Change) -> Change:
    return change


def _sensitivities(
    model: LanguageModel,
    quantizers: Sequence[Quantizer],
    calibration: Sequence[Tensor],
    scorer: Scorer | None,
) -> dict[str, torch.Tensor] | None:
    if scorer is None or not any(quantizer.needs_sensitivity for quantizer in quantizers):
        return None
    return dict(scorer.score(model, calibration))
