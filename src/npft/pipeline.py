"""A run from end to end: score, select, tune, merge, quantize, evaluate, report."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from npft import (
    comparison,
    config,
    data,
    folder,
    memory,
    model_checks,
    models,
    outliers,
    seeding,
    stages,
)
from npft.adapters import Adapter
from npft.artifacts import LanguageModel, Report, Row
from npft.config import RunConfig
from npft.contracts import Objective, Plugin, Quantizer, Sampler, Scorer
from npft.errors import NpftError
from npft.evaluation import harness
from npft.evaluation.harness import Tasks
from npft.folder import RunFolder
from npft.ledger import Ledger, Stage
from npft.plugins import Catalog, build
from npft.processes import ALONE, Processes
from npft.progress import Progress, Silent
from npft.provenance import environment, versions
from npft.report import page
from npft.report.reading import RESULTS, read_run
from npft.stages import Workspace
from npft.tuning import Tuning, replayable


@dataclass(frozen=True)
class Plan:
    """The configured parts of a run. Making one finds every mistake that needs no model."""

    scorer: Scorer
    sampler: Sampler
    objective: Objective
    tuning: Tuning
    quantizers: list[Quantizer]

    @property
    def needs_sensitivity(self) -> bool:
        """Whether anything beside the choice of outliers uses the sensitivities."""
        return self.sampler.needs_sensitivity or any(q.needs_sensitivity for q in self.quantizers)


def plan(settings: RunConfig, catalog: Catalog) -> Plan:
    """Build the plugins that a configuration names.

    Raises:
        NpftError: an unknown plugin, option or value; gamma out of range; a quantizer's setting
            that is there twice.
    """
    outliers.check_gamma(settings.gamma)
    tuning: Tuning = build(Tuning, "tuning", settings.tuning)
    tuning.grids()
    quantizers = [
        catalog.build("quantizer", choice.name, {**choice.options, "bits": bits})
        for choice in settings.quant
        for bits in settings.bits
    ]
    twice = [name for name, n in Counter(q.label for q in quantizers).items() if n > 1]
    if twice:
        raise NpftError(f"{twice[0]} is there twice: give each quantizer and bit width once")
    return Plan(
        catalog.build("scorer", settings.scorer.name, settings.scorer.options),
        catalog.build("sampler", settings.sampler.name, settings.sampler.options),
        catalog.build("objective", settings.objective.name, settings.objective.options),
        tuning,
        quantizers,
    )


def in_full(settings: RunConfig, parts: Plan) -> RunConfig:
    """The configuration with every option of its plugins written out, defaults included."""

    def chosen(plugin: Plugin) -> dict[str, Any]:
        return {"name": plugin.name, **plugin.model_dump(mode="json", exclude={"bits"})}

    each_once = parts.quantizers[:: len(settings.bits)]
    return config.make(
        {
            **settings.model_dump(),
            "scorer": chosen(parts.scorer),
            "sampler": chosen(parts.sampler),
            "objective": chosen(parts.objective),
            "tuning": parts.tuning.model_dump(mode="json"),
            "quant": [chosen(quantizer) for quantizer in each_once],
        }
    )


def run(
    settings: RunConfig,
    catalog: Catalog,
    progress: Progress | None = None,
    processes: Processes = ALONE,
) -> Report:
    """The whole job, into the run folder ``settings.output``, which is new or has a part of it.

    Several processes, which all call this, share scoring and tuning. The main one does the rest
    alone; what the others return has the losses and nothing else.

    Raises:
        NpftError: anything wrong with the input, the folder or the numbers, in one sentence.
    """
    parts = plan(settings, catalog)
    tasks = harness.load(settings.lm_eval)
    with (
        seeding.deterministic(settings.deterministic),
        folder.shared(folder.create, Path(settings.output), processes) as kept,
    ):
        work = workspace(settings, parts, catalog, kept, progress or Silent(), tasks, processes)
        scored = stages.score(work, settings.gamma, settings.scope, keep=parts.needs_sensitivity)
        scored.ensure()
        adapters: dict[str, Stage[Adapter]] = {}
        if settings.control:
            adapters["control"] = stages.control(work, parts.objective, parts.tuning).ensure()
        adapters["tuned"] = stages.tune(
            work, scored, parts.sampler, parts.objective, parts.tuning
        ).ensure()
        losses = {which: adapter().losses for which, adapter in adapters.items()}
        report = Report([], losses, unavailable=dict(work.unavailable))
        report.notes.extend(stages.skipped(losses))
        work.disband()
        if not processes.main:
            return report
        for found in comparison.compare(work, adapters, scored):
            report = replace(
                report,
                rows=report.rows + found.rows,
                unavailable=report.unavailable | found.unavailable,
                notes=report.notes + found.notes,
                sensitivity=found.sensitivity or report.sensitivity,
                environment=environment(work),
                seconds=dict(work.ledger.clock.seconds),
            )
            kept.write_json(RESULTS, asdict(report))
        write_results(kept, report)
        quantized = [row for row in report.rows if row.quantizer != "none"]
        comparison.require_some(quantized, report.unavailable)
        work.ledger.tidy()
        return report


def workspace(
    settings: RunConfig,
    parts: Plan,
    catalog: Catalog,
    kept: RunFolder,
    progress: Progress,
    tasks: Tasks | None = None,
    processes: Processes = ALONE,
) -> Workspace:
    """Load the model and the texts, and check that they go together with the quantizers."""
    ledger = Ledger(kept, progress, processes)
    with ledger.clock.timing("load"):
        model, score_batch = load(settings, parts, progress, processes)
    able, unable = comparison.available(parts.quantizers, model, progress)
    parts.tuning.adapter_layers(model)
    outliers.check_selects(settings.gamma, model.layers.values(), settings.scope)
    calibration, texts = windows(settings, model, progress)
    work = Workspace(
        ledger=ledger,
        model=model,
        calibration=calibration,
        texts=texts,
        scorer=parts.scorer,
        score_batch=score_batch,
        seed=settings.seed,
        progress=progress,
        quantizers=able,
        unavailable=unable,
        tasks=tasks,
        versions=versions(),
        packages={entry.cls: f"{entry.package} {entry.version}" for entry in catalog},
    )
    processes.agree(work.inputs(calibration=work.calibration_fingerprint))
    if processes.main:
        kept.write_text(folder.CONFIG, config.dumps(in_full(settings, parts), environment(work)))
    return work


def load(
    settings: RunConfig, parts: Plan, progress: Progress, processes: Processes = ALONE
) -> tuple[LanguageModel, int]:
    """The float model that a configuration names, and how many windows to score at once.

    Whether the model is resident, sharded or streamed is noted, with the estimate it follows from.

    Raises:
        NpftError: it cannot be loaded, or what is planned does not fit into memory.
    """
    divided = processes.count if parts.objective.averages_over_windows else 1
    scorers = processes.count if parts.scorer.sums_over_windows else 1
    job = memory.Job(
        context=settings.context,
        samples=settings.samples,
        scored=math.ceil(settings.samples / scorers),
        score_batch=settings.score_batch,
        tune_batch=math.ceil(parts.tuning.batch_size / divided),
        rank=parts.tuning.rank,
        gamma=settings.gamma,
        original=parts.objective.needs_original,
        sensitivities=parts.needs_sensitivity,
        processes=processes.count,
        here=processes.here,
    )

    score_batch = 0

    def decide(shapes: nn.Module, device: torch.device) -> memory.Mode:
        nonlocal score_batch
        model_checks.check_context(shapes, settings.model, settings.context)
        sizes = memory.Sizes.of(shapes, models.DTYPES[settings.dtype].itemsize)
        free = memory.shared(memory.free_memory(device), device, processes)
        recorded = replayable(device, parts.objective, parts.tuning, processes)
        planned = replace(job, recorded=recorded)
        choice = memory.choose(settings.memory, sizes, planned, free, device)
        progress.note(choice.told)
        _note_sharing(processes, parts, progress)
        score_batch = choice.score_batch
        return choice.mode

    model = models.load(
        settings.model,
        device=processes.device(settings.device),
        dtype=settings.dtype,
        trust_remote_code=settings.trust_remote_code,
        allow_pickle=settings.allow_pickle,
        decide=decide,
        processes=processes,
    )
    return model, score_batch


def _note_sharing(processes: Processes, parts: Plan, progress: Progress) -> None:
    """Say how many processes there are, and what they cannot share."""
    if processes.count == 1:
        return
    progress.note(f"{processes.count} processes share the scoring and the tuning")
    for plugin, divisible in (
        (parts.scorer, parts.scorer.sums_over_windows),
        (parts.objective, parts.objective.averages_over_windows),
    ):
        if not divisible:
            progress.note(f"{plugin.name} cannot be shared: each process does all of its windows")


def windows(
    settings: RunConfig, model: LanguageModel, progress: Progress
) -> tuple[Tensor, dict[str, Tensor]]:
    """Windows ``(n, context)`` to calibrate on, and to evaluate on by name."""
    model_checks.check_context(model.network, model.source, settings.context)
    calibration = _tokens(model, settings.calibration, "calibration", settings.context)
    if len(calibration) < settings.samples:
        progress.note(
            f"calibration text {settings.calibration!r} has {len(calibration)} windows of "
            f"{settings.context} tokens, fewer than the {settings.samples} asked for: using all"
        )
    texts = {
        name: _tokens(model, source, "held-back", settings.context)[: settings.eval_samples]
        for name, source in settings.evaluate.items()
    }
    return data.choose(calibration, settings.samples, settings.seed), texts


def _tokens(model: LanguageModel, source: str, split: str, context: int) -> Tensor:
    cut = data.windows(model.tokenizer, data.load_text(source, split), context, source)
    data.check_vocabulary(cut, model.vocabulary, source)
    return cut


def write_results(kept: RunFolder, report: Report) -> None:
    """``results.json``, every number of the run, and ``report.html``, the page that shows them."""
    kept.write_json(RESULTS, asdict(report))
    write_page(kept)


def write_page(kept: RunFolder) -> None:
    """``report.html`` from what else is in the folder."""
    kept.write_text("report.html", page.render(read_run(kept.path)))


def merge_rows(old: list[Row], new: list[Row]) -> list[Row]:
    """``old`` with the rows that ``new`` measures again replaced, and the others at the end."""

    def key(row: Row) -> Row:
        return replace(row, value=0.0, stderr=None, tokens=0, questions=0, avg_bits=0.0)

    measured = {key(row): row for row in new}
    return [measured.pop(key(row), row) for row in old] + list(measured.values())
