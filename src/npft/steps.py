"""The stages of :mod:`npft.pipeline` alone: each opens a run folder and goes one step on.

The lens alone has no folder. Scoring and tuning may be shared by several processes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from npft import checkpoints, comparison, data, folder, pipeline, seeding, stages
from npft.artifacts import Report
from npft.bench.result import Result
from npft.config import RunConfig
from npft.errors import NpftError, Unavailable
from npft.evaluation import harness
from npft.evaluation.harness import Tasks
from npft.folder import RunFolder
from npft.lens import measuring
from npft.pipeline import Plan
from npft.plugins import Catalog
from npft.processes import ALONE, Processes
from npft.progress import Progress
from npft.provenance import environment
from npft.report.reading import BENCH, RESULTS, read_results
from npft.stages import Variant, Workspace


def score(
    settings: RunConfig, catalog: Catalog, progress: Progress, processes: Processes = ALONE
) -> None:
    """Start a run folder with ``config.toml`` and ``scores/``."""
    parts = pipeline.plan(settings, catalog)
    with (
        seeding.deterministic(settings.deterministic),
        folder.shared(folder.create, Path(settings.output), processes) as kept,
    ):
        work = pipeline.workspace(settings, parts, catalog, kept, progress, processes=processes)
        keep = parts.needs_sensitivity
        stages.score(work, settings.gamma, settings.scope, keep=keep).ensure()
        processes.disband()
        if processes.main:
            work.ledger.tidy()


def tune(
    settings: RunConfig, catalog: Catalog, progress: Progress, processes: Processes = ALONE
) -> None:
    """From ``scores/`` to ``adapter/`` and ``merged/``, and the control's adapter."""
    with _opened(settings, catalog, progress, processes=processes) as (parts, work):
        scored = stages.load_scored(work)
        if settings.control:
            stages.control(work, parts.objective, parts.tuning).ensure()
        adapter = stages.tune(work, scored, parts.sampler, parts.objective, parts.tuning).ensure()
        work.disband()
        if not processes.main:
            return
        variant = stages.tuned(work, "tuned", adapter)
        stages.merge(work, variant).ensure()
        stages.follow_sensitive(work, scored, variant).ensure()
        work.ledger.tidy()


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
    with _opened(_by_one(settings, progress), catalog, progress) as (_, work):
        written = []
        unavailable = dict(work.unavailable)
        for name in which:
            variant = _variant(work, name)
            for quantizer in work.quantizers:
                keep_as = stages.below(name, quantizer.label)
                quantized = stages.quantize(work, variant, quantizer, keep=True)
                try:
                    quantized.ensure()
                except Unavailable as reason:
                    unavailable[quantizer.label] = str(reason)
                    progress.note(f"{quantizer.label} is not available: {reason}")
                    continue
                for note in stages.notes(name, quantizer.label, quantized):
                    progress.note(note)
                written.append(work.folder / stages.QUANTIZED / keep_as)
                if as_float:
                    written.append(stages.keep_float(work, quantized(), keep_as))
                quantized.release()
        work.ledger.tidy()
        comparison.require_some(written, unavailable)
        return written


def evaluate(settings: RunConfig, catalog: Catalog, progress: Progress) -> Report:
    """Measure every model and checkpoint in the folder; ``results.json`` keeps other rows."""
    tasks = harness.load(settings.lm_eval)
    with _opened(_by_one(settings, progress), catalog, progress, tasks) as (_, work):
        references = stages.originals(work)
        rows, notes = [], []
        for name in ("original", "control", "tuned"):
            if name != "original" and stages.kept_adapter(work, name) is None:
                continue
            variant = _variant(work, name)
            rows += stages.measure(work, references, variant)
            for setting in _settings(work.folder, name):
                quantized = stages.checkpoint(work, name, setting)
                rows += stages.measure(work, references, variant, setting, quantized)
                notes += stages.notes(name, setting, quantized)
                quantized.release()
        work.ledger.tidy()
        before = _so_far(work.folder)
        notes += stages.skipped(before.losses)
        report = replace(
            before,
            rows=pipeline.merge_rows(before.rows, rows),
            environment=environment(work),
            unavailable=dict(work.unavailable),
            notes=notes,
        )
        pipeline.write_results(work.folder, report)
        return report


def keep_bench(kept: RunFolder, found: Result) -> None:
    """The latency of a folder's checkpoints, as ``bench.json``, and on its page if it has one."""
    kept.write_json(BENCH, found.as_json())
    if (kept / RESULTS).is_file():
        pipeline.write_page(kept)


def lens(
    settings: RunConfig, chosen: measuring.Settings, catalog: Catalog, progress: Progress
) -> list[measuring.Row]:
    """What perturbations cost the float model; no run folder is made."""
    parts = pipeline.plan(settings, catalog)
    model, score_batch = pipeline.load(settings, parts, progress)
    able, _ = comparison.available(parts.quantizers, model, progress)
    calibration, texts = pipeline.windows(settings, model, progress)
    batches = list(data.batches(calibration, score_batch, model.device))
    return measuring.look(model, texts, chosen, progress, able, batches, parts.scorer)


@contextmanager
def _opened(
    settings: RunConfig,
    catalog: Catalog,
    progress: Progress,
    tasks: Tasks | None = None,
    processes: Processes = ALONE,
) -> Iterator[tuple[Plan, Workspace]]:
    parts = pipeline.plan(settings, catalog)
    with (
        seeding.deterministic(settings.deterministic),
        folder.shared(folder.opened, Path(settings.output), processes) as kept,
    ):
        yield parts, pipeline.workspace(settings, parts, catalog, kept, progress, tasks, processes)


def _by_one(settings: RunConfig, progress: Progress) -> RunConfig:
    """A folder's configuration for one process, whatever several made the folder with."""
    if settings.memory != "sharded":
        return settings
    progress.note("one process does this verb, so that nothing is sharded: --memory is auto")
    return settings.model_copy(update={"memory": "auto"})


def _variant(work: Workspace, name: str) -> Variant:
    """One of the folder's models.

    Raises:
        NpftError: it has none of that name yet.
    """
    if name == "original":
        return stages.original(work)
    adapter = stages.kept_adapter(work, name)
    if adapter is None:
        raise NpftError(f"{str(work.folder.path)!r} has no {name} model yet: run npft tune first")
    return stages.tuned(work, name, adapter)


def _settings(kept: RunFolder, name: str) -> list[str]:
    """The settings in which one of the models is in the folder as a checkpoint."""
    place = kept / stages.QUANTIZED / stages.below(name, "any")
    if not place.parent.is_dir():
        return []
    found = place.parent.iterdir()
    return sorted(path.name for path in found if (path / checkpoints.MANIFEST).is_file())


def _so_far(kept: RunFolder) -> Report:
    """What is known already: earlier results, and what single stages left."""
    file = kept / RESULTS
    report = read_results(file) if file.is_file() else Report([])
    return replace(
        report,
        losses=report.losses or stages.kept_losses(kept),
        sensitivity=report.sensitivity or stages.kept_sensitivity(kept),
    )
