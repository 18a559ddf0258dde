"""Every model as float and through every quantizer; one tuning serves them all."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from npft import checkpoints, stages
from npft.adapters import Adapter
from npft.artifacts import LanguageModel, Report
from npft.contracts import Quantizer
from npft.errors import NpftError, Unavailable
from npft.evaluation.quality import Original
from npft.ledger import Stage
from npft.progress import Progress
from npft.stages import Scored, Variant, Workspace


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
            _check_streamed(quantizer, model)
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


def _check_streamed(quantizer: Quantizer, model: LanguageModel) -> None:
    whole = type(quantizer).quantize is not Quantizer.quantize
    if whole and model.stream is not None:
        raise Unavailable(
            f"{quantizer.name} works on the whole network, which is streamed: quantize with "
            "--memory resident"
        )


def require_some(done: Collection[Any], unavailable: Mapping[str, str]) -> None:
    """Where nothing could be done, the reasons are an error.

    Raises:
        NpftError: ``done`` is empty, for the reasons given.
    """
    if unavailable and not done:
        raise NpftError("; ".join(dict.fromkeys(unavailable.values())))


def compare(
    work: Workspace, adapters: Mapping[str, Stage[Adapter]], scored: Stage[Scored]
) -> Iterator[Report]:
    """What each model, as float and through each quantizer, adds to the report.

    A model is merged when its turn comes, so that only one beside the original is in memory. The
    tuned one's comes first, as its folder is what a run is for.
    """
    references = stages.originals(work)
    for which in ("tuned", "original", "control"):
        if which == "original":
            yield from measure(work, stages.original(work, scored), references)
        elif which in adapters:
            variant = stages.tuned(work, which, adapters[which])
            if which == "tuned":
                stages.merge(work, variant).ensure()
                yield Report([], sensitivity=stages.follow_sensitive(work, scored, variant)())
            yield from measure(work, variant, references)
            del variant


def measure(
    work: Workspace, variant: Variant, references: Mapping[str, Original]
) -> Iterator[Report]:
    """The rows of one model, as float and through each quantizer; the tuned one's are kept."""
    yield Report(stages.measure(work, references, variant))
    for quantizer in work.quantizers:
        label = quantizer.label
        keep = variant.name == "tuned"
        quantized = stages.quantize(work, variant, quantizer, keep=keep)
        try:
            if keep:
                quantized.ensure()
            rows = stages.measure(work, references, variant, label, quantized)
        except Unavailable as reason:
            work.progress.note(f"{label} is not available: {reason}")
            yield Report([], unavailable={label: str(reason)})
            continue
        finally:
            quantized.release()
        yield Report(rows, notes=stages.notes(variant.name, label, quantized))
