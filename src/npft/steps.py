"""The stages of :mod:`npft.pipeline` alone: each opens a run folder and goes one step on.

The lens alone has no folder.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from npft import adapters, checkpoints, comparison, data, folder, pipeline, stages
from npft.artifacts import LanguageModel, Report
from npft.config import RunConfig
from npft.errors import Unavailable
from npft.evaluation import harness
from npft.folder import RunFolder
from npft.lens import measuring
from npft.pipeline import Plan
from npft.plugins import Catalog
from npft.progress import Progress
from npft.provenance import environment
from npft.report.reading import RESULTS, read_results
from npft.stages import Workspace

QUANTIZED = "quantized"


def score(settings: RunConfig, catalog: Catalog, progress: Progress) -> None:
    """Start a run folder with ``config.toml`` and ``scores/``."""
    parts = pipeline.plan(settings, catalog)
    with folder.create(Path(settings.output)) as kept:
        work = pipeline.workspace(settings, parts, kept, progress)
        stages.score(work, settings.gamma, settings.scope, keep=parts.needs_sensitivity)


def tune(settings: RunConfig, catalog: Catalog, progress: Progress) -> None:
    """From ``scores/`` to ``adapter/`` and ``merged/``, and the control's adapter."""
    with _opened(settings, catalog, progress) as (parts, work):
        scored = stages.load_scored(work)
        if settings.control:
            stages.control(work, parts.objective, parts.tuning)
        adapter = stages.tune(work, scored, parts.sampler, parts.objective, parts.tuning)
        merged = stages.merge(work, "tuned", adapter)
        if scored.largest is not None:
            stages.follow_sensitive(work, scored.largest, merged)


def quantize(
    settings: RunConfig,
    catalog: Catalog,
    progress: Progress,
    which: tuple[str, ...],
    *,
    as_float: bool = False,
) -> list[Path]:
    """Quantize some of the folder's models; the checkpoints' paths.

    The tuned model's go to ``quantized/SETTING``, the others' to ``quantized/MODEL/SETTING``. With
    ``as_float``, each is written as an ordinary float model as well, for software that knows no
    format of quantized ones, to the same place below ``dequantized/``.
    """
    with _opened(settings, catalog, progress) as (_, work):
        written = []
        unavailable = dict(work.unavailable)
        for name in which:
            model = _model(work, name)
            known = stages.sensitivities_to_quantize(work, model, name)
            for quantizer in work.quantizers:
                keep_as = quantizer.label if name == "tuned" else f"{name}/{quantizer.label}"
                try:
                    quantized = stages.quantize(work, model, quantizer, known, keep_as)
                except Unavailable as reason:
                    unavailable[quantizer.label] = str(reason)
                    progress.note(f"{quantizer.label} is not available: {reason}")
                    continue
                for note in stages.notes(name, quantized):
                    progress.note(note)
                written.append(work.folder / QUANTIZED / keep_as)
                if as_float:
                    written.append(stages.keep_float(work, quantized, keep_as))
        comparison.require_some(written, unavailable)
        return written


def evaluate(settings: RunConfig, catalog: Catalog, progress: Progress) -> Report:
    """Measure every model and checkpoint in the folder; ``results.json`` keeps other rows."""
    tasks = harness.load(settings.lm_eval)
    with _opened(settings, catalog, progress) as (_, work):
        work = replace(work, tasks=tasks)
        references = stages.originals(work)
        rows, notes = [], []
        for name in ("original", "control", "tuned"):
            if not _present(work.folder, name):
                continue
            model = _model(work, name)
            rows += stages.measure(work, references, name, model)
            for path in _checkpoints(work.folder, name):
                quantized = checkpoints.load(path, device=settings.device, dtype=settings.dtype)
                rows += stages.measure(work, references, name, model, quantized)
                notes += stages.notes(name, quantized)
        before = _so_far(work.folder)
        report = replace(
            before,
            rows=pipeline.merge_rows(before.rows, rows),
            environment=environment(work),
            unavailable=dict(work.unavailable),
            notes=notes,
        )
        pipeline.write_results(work.folder, report)
        return report


def lens(
    settings: RunConfig, chosen: measuring.Settings, catalog: Catalog, progress: Progress
) -> list[measuring.Row]:
    """What perturbations cost the float model; no run folder is made."""
    parts = pipeline.plan(settings, catalog)
    model = pipeline.load(settings)
    able, _ = comparison.available(parts.quantizers, model, progress)
    calibration, texts = pipeline.windows(settings, model, progress)
    batches = list(data.batches(calibration, settings.score_batch, model.device))
    return measuring.look(model, texts, chosen, progress, able, batches, parts.scorer)


@contextmanager
def _opened(
    settings: RunConfig, catalog: Catalog, progress: Progress
) -> Iterator[tuple[Plan, Workspace]]:
    parts = pipeline.plan(settings, catalog)
    with folder.opened(Path(settings.output)) as kept:
        yield parts, pipeline.workspace(settings, parts, kept, progress)


def _present(kept: RunFolder, name: str) -> bool:
    return name == "original" or (kept / _adapter(name)).is_dir()


def _adapter(name: str) -> str:
    return "adapter" if name == "tuned" else "control"


def _model(work: Workspace, name: str) -> LanguageModel:
    if name == "original":
        return work.model
    return adapters.merge(work.model, adapters.load_adapter(work.folder / _adapter(name)))


def _checkpoints(kept: RunFolder, name: str) -> list[Path]:
    place = kept / QUANTIZED if name == "tuned" else kept / QUANTIZED / name
    if not place.is_dir():
        return []
    return sorted(path for path in place.iterdir() if (path / checkpoints.MANIFEST).is_file())


def _so_far(kept: RunFolder) -> Report:
    """What is known already: earlier results, and what single stages left."""
    file = kept / RESULTS
    report = read_results(file) if file.is_file() else Report([])
    return replace(
        report,
        losses=report.losses or stages.kept_losses(kept),
        sensitivity=report.sensitivity or stages.kept_sensitivity(kept),
    )
