"""A run from end to end: score, select, tune, merge, quantize, evaluate, report."""

from __future__ import annotations

import platform
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from hashlib import blake2b
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from npft import config, data, folder, model_checks, models, outliers, stages
from npft.adapters import Adapter, merge
from npft.artifacts import LanguageModel, Report, Row, label
from npft.config import RunConfig
from npft.contracts import Objective, Plugin, Quantizer, Sampler, Scorer
from npft.evaluation import harness
from npft.evaluation.quality import Original
from npft.folder import RunFolder
from npft.plugins import Catalog, build
from npft.progress import Progress, Silent
from npft.stages import Scored, Workspace
from npft.tuning import Tuning


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
        NpftError: an unknown plugin, option or value; gamma out of range.
    """
    outliers.check_gamma(settings.gamma)
    tuning: Tuning = build(Tuning, "tuning", settings.tuning)
    tuning.grids()
    quantizers = [
        catalog.build("quantizer", choice.name, {**choice.options, "bits": bits})
        for choice in settings.quant
        for bits in settings.bits
    ]
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

    quantizers = {quantizer.name: quantizer for quantizer in parts.quantizers}
    return config.make(
        {
            **settings.model_dump(),
            "scorer": chosen(parts.scorer),
            "sampler": chosen(parts.sampler),
            "objective": chosen(parts.objective),
            "tuning": parts.tuning.model_dump(mode="json"),
            "quant": [chosen(quantizers[choice.name]) for choice in settings.quant],
        }
    )


def run(settings: RunConfig, catalog: Catalog, progress: Progress | None = None) -> Report:
    """The whole job, into a new run folder ``settings.output``.

    Raises:
        NpftError: anything wrong with the input, the folder or the numbers, in one sentence.
    """
    parts = plan(settings, catalog)
    tasks = harness.load(settings.lm_eval)
    clock = Clock()
    with folder.create(Path(settings.output)) as kept:
        with clock.timing("load"):
            work = workspace(settings, parts, kept, progress or Silent())
            work = replace(work, tasks=tasks)
        with clock.timing("score"):
            scored = stages.score(
                work, settings.gamma, settings.scope, keep=parts.needs_sensitivity
            )
        adapters: dict[str, Adapter] = {}
        if settings.control:
            with clock.timing("control"):
                adapters["control"] = stages.control(work, parts.objective, parts.tuning)
        with clock.timing("tune"):
            adapters["tuned"] = stages.tune(
                work, scored, parts.sampler, parts.objective, parts.tuning
            )
        losses = {which: adapter.losses for which, adapter in adapters.items()}
        report = Report([], losses, clock.seconds, {})
        for rows in _compare(work, parts, adapters, scored, clock):
            report = replace(report, rows=report.rows + rows, environment=environment(work))
            write_results(kept, report)
        return report


def _compare(
    work: Workspace,
    parts: Plan,
    adapters: Mapping[str, Adapter],
    scored: Scored,
    clock: Clock,
) -> Iterator[list[Row]]:
    """Every model as float and through every quantizer; one tuning serves them all.

    A model is merged when its turn comes, so that only one beside the original is in memory.
    """
    references = stages.originals(work)
    yield from _measure(work, parts, "original", work.model, scored, references, clock)
    for which, adapter in adapters.items():
        merged = merge(work.model, adapter)
        yield from _measure(work, parts, which, merged, None, references, clock)
        del merged


def _measure(
    work: Workspace,
    parts: Plan,
    which: str,
    model: LanguageModel,
    scored: Scored | None,
    references: Mapping[str, Original],
    clock: Clock,
) -> Iterator[list[Row]]:
    with clock.timing("evaluate"):
        rows = stages.measure(work, references, which, model)
    yield rows
    with clock.timing("quantize"):
        known = _sensitivities(work, parts, model, which, scored)
    for quantizer in parts.quantizers:
        name = label(quantizer.name, quantizer.bits, quantizer.group_size_or_zero)
        with clock.timing("quantize"):
            keep_as = name if which == "tuned" else None
            quantized = stages.quantize(work, model, quantizer, known, keep_as)
        with clock.timing("evaluate"):
            rows = stages.measure(work, references, which, model, quantized)
        del quantized
        yield rows


def _sensitivities(
    work: Workspace, parts: Plan, model: LanguageModel, which: str, scored: Scored | None
) -> Mapping[str, Tensor] | None:
    """A quantizer is given the sensitivities of the very model that it quantizes."""
    if not any(quantizer.needs_sensitivity for quantizer in parts.quantizers):
        return None
    if scored is not None and scored.sensitivities is not None:
        return scored.sensitivities
    return dict(stages.sensitivities(work, model, f"score {which}"))


def workspace(settings: RunConfig, parts: Plan, kept: RunFolder, progress: Progress) -> Workspace:
    """Load the model and the texts, and check that they go together with the quantizers."""
    model = models.load(
        settings.model,
        device=settings.device,
        dtype=settings.dtype,
        trust_remote_code=settings.trust_remote_code,
        allow_pickle=settings.allow_pickle,
    )
    for quantizer in parts.quantizers:
        quantizer.check(model)
    parts.tuning.adapter_layers(model)
    outliers.check_selects(settings.gamma, model.layers.values(), settings.scope)
    model_checks.check_context(model, settings.context)
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
    work = Workspace(
        folder=kept,
        model=model,
        calibration=data.choose(calibration, settings.samples, settings.seed),
        texts=texts,
        scorer=parts.scorer,
        score_batch=settings.score_batch,
        seed=settings.seed,
        progress=progress,
    )
    kept.write_text(folder.CONFIG, config.dumps(in_full(settings, parts), environment(work)))
    return work


def _tokens(model: LanguageModel, source: str, split: str, context: int) -> Tensor:
    cut = data.windows(model.tokenizer, data.load_text(source, split), context, source)
    data.check_vocabulary(cut, model.vocabulary, source)
    return cut


class Clock:
    """Wall-clock seconds by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def timing(self, stage: str) -> Iterator[None]:
        """Add the time spent in this scope to ``stage``."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start


def environment(work: Workspace) -> dict[str, Any]:
    """Versions, machine and fingerprints: what a number depends on beside the configuration."""
    found: dict[str, Any] = {
        name: metadata.version(name) for name in ("npft", "torch", "transformers", "peft")
    }
    found["python"] = platform.python_version()
    found["device"] = str(work.model.device)
    # Linux counts kilobytes, macOS bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    found["peak_memory_gb"] = round(peak / 1e9, 2)
    if work.model.device.type == "cuda":
        found["device_name"] = torch.cuda.get_device_name(work.model.device)
        found["peak_device_memory_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)
    found["calibration_fingerprint"] = _fingerprint(work.calibration)
    weights = torch.stack([layer.weight.double().sum() for layer in work.model.layers.values()])
    found["model_fingerprint"] = _fingerprint(weights.cpu())
    return found


def _fingerprint(values: Tensor) -> str:
    return blake2b(values.contiguous().numpy().tobytes(), digest_size=8).hexdigest()


def write_results(kept: RunFolder, report: Report) -> None:
    """``results.json``: every number of the run."""
    kept.write_json("results.json", asdict(report))


def merge_rows(old: list[Row], new: list[Row]) -> list[Row]:
    """``old`` with the rows that ``new`` measures again replaced, and the others at the end."""

    def key(row: Row) -> Row:
        return replace(row, value=0.0, stderr=None, tokens=0, questions=0, avg_bits=0.0)

    measured = {key(row): row for row in new}
    return [measured.pop(key(row), row) for row in old] + list(measured.values())
