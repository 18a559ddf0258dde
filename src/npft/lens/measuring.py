"""KL and perplexity under every kind of perturbation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Literal

from torch import Tensor

from npft.artifacts import LanguageModel
from npft.contracts import Quantizer, Scorer
from npft.errors import NpftError, Unavailable
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

    What a quantizer cannot do here, such as activations, is noted and left out.
    """
    able = [(quantizer, _targets(quantizer, settings, progress)) for quantizer in quantizers]
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
    total = per_target * len(settings.targets)
    total += sum(len(targets) for _, targets in able) * (len(settings.intensities) + 1)
    needing = [one for one, targets in able if targets and one.needs_sensitivity]
    known: dict[str, Tensor] = {}
    if needing and scorer is not None:
        batches = progress.track(calibration, "score", len(calibration))
        known = dict(scorer.score(model, batches))
    cases = chain(
        _made(model, settings),
        *(_own(model, settings, *one, calibration, known, progress) for one in able),
    )
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


def _made(model: LanguageModel, settings: Settings) -> Iterator[_Case]:
    """The perturbations that are made here, and clipping at its own size."""

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


def _targets(quantizer: Quantizer, settings: Settings, progress: Progress) -> list[Target]:
    """What the quantizer can perturb."""
    if set(settings.targets) == {"weights"}:
        return ["weights"]
    try:
        residuals.of_tokens(quantizer, None)
    except Unavailable as reason:
        progress.note(str(reason))
        return [target for target in settings.targets if target == "weights"]
    return list(settings.targets)


def _own(
    model: LanguageModel,
    settings: Settings,
    quantizer: Quantizer,
    targets: Sequence[Target],
    calibration: Sequence[Tensor],
    sensitivities: Mapping[str, Tensor],
    progress: Progress,
) -> Iterator[_Case]:
    """A quantizer's residual, made when its turn comes, at its own size and at the others."""
    of_weights: dict[str, Tensor] = {}
    if set(targets) - {"activations"}:
        try:
            of_weights = residuals.of_weights(model, quantizer, calibration, sensitivities or None)
        except Unavailable as reason:
            progress.note(str(reason))
            targets = [target for target in targets if target == "activations"]
    for target in targets:
        for size in (None, *settings.intensities):
            yield _Case(
                target,
                quantizer.label,
                size,
                residuals.stored(of_weights, size),
                partial(residuals.of_tokens, quantizer, size),
            )


def _fresh(make: Callable[[str], Change]) -> Change:
    """One stream per layer's name, so that every text meets the same perturbed weights."""
    return lambda name, values: make(name)(name, values)


def _clip(share: float, _name: str, values: Tensor) -> Tensor:
    return clipped_share(values, share)


def _same(change: Change) -> Change:
    return change
