"""Every model as float and through every quantizer; one tuning serves them all."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from npft import checkpoints, stages
from npft.adapters import Adapter
from npft.artifacts import LanguageModel, Report
from npft.contracts import Quantizer
from npft.errors import NpftError, Unavailable
from npft.evaluation.quality import Original
from npft.progress import Progress
from npft.provenance import Clock
from npft.stages import Scored, Workspace


def available(
    quantizers: Sequence[Quantizer], model: LanguageModel, progress: Progress
) -> tuple[tuple[Quantizer, ...], dict[str, str]]:
    """The quantizers that can do the model, and why the others cannot, by label.

    Raises:
        NpftError: none is left, or one finds a mistake of another kind.
    """
    able: list[Quantizer] = []
    unable: dict[str, str] = {}
    for quantizer in quantizers:
        try:
            quantizer.check(model)
            checkpoints.check(quantizer, model)
        except Unavailable as reason:
            unable[quantizer.label] = str(reason)
        else:
            able.append(quantizer)
    require_some(able, unable)
    for label, why in unable.items():
        progress.note(f"{label} is not available: {why}")
    return tuple(able), unable


def require_some(done: Collection[Any], unavailable: Mapping[str, str]) -> None:
    """Where nothing could be done, the reasons are an error.

    Raises:
        NpftError: ``done`` is empty, for the reasons given.
    """
    if unavailable and not done:
        raise NpftError("; ".join(dict.fromkeys(unavailable.values())))


def compare(
    work: Workspace, adapters: Mapping[str, Adapter], scored: Scored, clock: Clock
) -> Iterator[Report]:
    """What each model, as float and through each quantizer, adds to the report.

    A model is merged when its turn comes, so that only one beside the original is in memory. The
    tuned one's comes first, as its folder is what a run is for.
    """
    references = stages.originals(work)
    for which in ("tuned", "original", "control"):
        if which == "original":
            known = scored.sensitivities
            yield from measure(work, which, work.model, known, references, clock)
        elif which in adapters:
            merged = stages.merge(work, which, adapters[which])
            known = None
            if which == "tuned" and scored.largest is not None:
                with clock.timing("score"):
                    known = stages.sensitivities_to_quantize(work, merged, which)
                    found = stages.follow_sensitive(work, scored.largest, merged, known)
                yield Report([], sensitivity=found)
            yield from measure(work, which, merged, known, references, clock)
            del merged


def measure(
    work: Workspace,
    which: str,
    model: LanguageModel,
    known: Mapping[str, Tensor] | None,
    references: Mapping[str, Original],
    clock: Clock,
) -> Iterator[Report]:
    """The rows of one model, as float and through each quantizer; the tuned one's are kept.

    ``known`` are its sensitivities, if they are there already.
    """
    with clock.timing("evaluate"):
        rows = stages.measure(work, references, which, model)
    yield Report(rows)
    with clock.timing("quantize"):
        known = stages.sensitivities_to_quantize(work, model, which, known)
    for quantizer in work.quantizers:
        try:
            with clock.timing("quantize"):
                keep_as = quantizer.label if which == "tuned" else None
                quantized = stages.quantize(work, model, quantizer, known, keep_as)
        except Unavailable as reason:
            work.progress.note(f"{quantizer.label} is not available: {reason}")
            yield Report([], unavailable={quantizer.label: str(reason)})
            continue
        with clock.timing("evaluate"):
            rows = stages.measure(work, references, which, model, quantized)
        notes = stages.notes(which, quantized)
        del quantized
        yield Report(rows, notes=notes)
