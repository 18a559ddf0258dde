"""The stages of a run: each takes what the one before gave, and keeps its result in the folder."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors.torch import save_file
from torch import Tensor

from npft import adapters, data, models, outliers, score_files, tuning
from npft.adapters import Adapter
from npft.artifacts import LanguageModel, Outliers, QuantizedModel, Row, Sensitivity, StepLoss
from npft.contracts import Objective, Quantizer, Sampler, Scorer
from npft.errors import NpftError
from npft.evaluation import most_sensitive
from npft.evaluation.harness import Tasks
from npft.evaluation.most_sensitive import MostSensitive
from npft.evaluation.quality import Original, evaluate
from npft.folder import RunFolder
from npft.objectives.cross_entropy import CrossEntropy
from npft.outliers import Scope
from npft.progress import Progress
from npft.tuning import Tuning

LOSSES = {"control": "losses-control.json", "tuned": "losses.json"}
SENSITIVITY = "sensitivity.json"
LARGEST = "largest.safetensors"
DEQUANTIZED = "dequantized"
"""Where a run folder has quantized models as float ones."""

T = TypeVar("T")


@dataclass(frozen=True)
class Workspace:
    """Everything that stages share: where, on what model and text, and how to show progress.

    ``quantizers`` are those that can do the model; ``unavailable`` says of the others, by label,
    why they cannot.
    """

    folder: RunFolder
    model: LanguageModel
    calibration: Tensor
    texts: Mapping[str, Tensor]
    scorer: Scorer
    score_batch: int
    seed: int
    progress: Progress
    quantizers: Sequence[Quantizer] = ()
    unavailable: Mapping[str, str] = field(default_factory=dict)
    tasks: Tasks | None = None

    def batches(self) -> Iterator[Tensor]:
        """Calibration windows in batches on the model's device."""
        return data.batches(self.calibration, self.score_batch, self.model.device)


@dataclass(frozen=True)
class Scored:
    """What the score stage gives: positions, and all sensitivities if somebody needs them.

    ``largest`` are the most sensitive weights, whatever gamma is; None if they were not kept.
    """

    outliers: Mapping[str, Outliers]
    gamma: float
    scope: Scope
    sensitivities: Mapping[str, Tensor] | None
    largest: MostSensitive | None = None


def score(work: Workspace, gamma: float, scope: Scope, *, keep: bool) -> Scored:
    """Score the weights and select the outliers; ``keep`` the sensitivities as well."""
    kept: dict[str, Tensor] = {}
    largest = MostSensitive()

    def stream() -> Iterator[tuple[str, Tensor]]:
        for name, values in largest.watch(sensitivities(work, work.model, "score")):
            if keep:
                kept[name] = values
            yield name, values

    chosen = _selected(work, stream(), gamma, scope)
    scored = Scored(chosen, gamma, scope, kept if keep else None, largest)
    with work.folder.writing("scores") as draft:
        draft.mkdir()
        _save_outliers(scored, draft / "outliers.safetensors")
        largest.save(draft / LARGEST)
        if keep:
            save_file({n: v.cpu() for n, v in kept.items()}, draft / "sensitivities.safetensors")
    return scored


def sensitivities(
    work: Workspace, model: LanguageModel, label: str
) -> Iterator[tuple[str, Tensor]]:
    """The scorer's stream for a model on the calibration windows."""
    count = -(-len(work.calibration) // work.score_batch)
    return work.scorer.score(model, work.progress.track(work.batches(), label, count))


def _selected(
    work: Workspace, scores: Iterator[tuple[str, Tensor]], gamma: float, scope: Scope
) -> dict[str, Outliers]:
    if scope == "matrix":
        return outliers.select(scores, gamma)
    total = sum(layer.out_features * layer.in_features for layer in work.model.layers.values())
    return outliers.select_across(scores, gamma, total)


def load_scored(work: Workspace) -> Scored:
    """What an earlier score stage left in the folder.

    Raises:
        NpftError: there is nothing.
    """
    file = work.folder / "scores" / "outliers.safetensors"
    if not file.is_file():
        raise NpftError(f"{str(work.folder.path)!r} has no scores yet: run npft score first")
    layers, device = work.model.layers, str(work.model.device)
    chosen, gamma, scope = score_files.outliers(file, layers, device)
    kept = work.folder / "scores" / "sensitivities.safetensors"
    known = score_files.sensitivities(kept, layers, device) if kept.is_file() else None
    file = work.folder / "scores" / LARGEST
    largest = score_files.most_sensitive(file, layers) if file.is_file() else None
    return Scored(chosen, gamma, scope, known, largest)


def _save_outliers(scored: Scored, file: Path) -> None:
    chosen = scored.outliers
    everything = [name for name, found in chosen.items() if found.positions is None]
    positions = {n: f.positions.cpu() for n, f in chosen.items() if f.positions is not None}
    metadata = {
        "everything": json.dumps(everything),
        "gamma": str(scored.gamma),
        "scope": scored.scope,
    }
    save_file(positions, file, metadata=metadata)


def tune(
    work: Workspace, scored: Scored, sampler: Sampler, objective: Objective, settings: Tuning
) -> Adapter:
    """Tune under noise; keeps ``adapter/`` and ``losses.json``."""

    def rescore(adapted: LanguageModel) -> Mapping[str, Outliers]:
        scores = sensitivities(work, adapted, "score again")
        return _selected(work, scores, scored.gamma, scored.scope)

    adapter = tuning.tune(
        work.model,
        work.calibration,
        scored.outliers,
        sampler,
        objective,
        settings,
        seed=work.seed,
        sensitivities=scored.sensitivities,
        rescore=rescore,
        progress=work.progress,
    )
    _keep_adapter(work, adapter, "adapter", LOSSES["tuned"])
    return adapter


def merge(work: Workspace, which: str, adapter: Adapter) -> LanguageModel:
    """The model with an adapter merged into it; keeps the tuned one as ``merged/``."""
    merged = adapters.merge(work.model, adapter)
    if which == "tuned":
        with work.folder.writing("merged") as draft:
            models.save(merged, draft)
    return merged


def follow_sensitive(
    work: Workspace,
    before: MostSensitive,
    tuned: LanguageModel,
    known: Mapping[str, Tensor] | None = None,
) -> Sensitivity:
    """What has become of the most sensitive weights; keeps ``sensitivity.json``.

    ``known`` are the sensitivities of the tuned model, where they are there already.
    """
    after = known.items() if known is not None else sensitivities(work, tuned, "score tuned")
    found = most_sensitive.compare(tuned, before, after)
    work.folder.write_json(SENSITIVITY, asdict(found))
    return found


def kept_sensitivity(kept: RunFolder) -> Sensitivity | None:
    """What :func:`follow_sensitive` left in a folder, if anything."""
    return _kept(kept / SENSITIVITY, Sensitivity)


def kept_losses(kept: RunFolder) -> dict[str, list[StepLoss]]:
    """The training losses in a folder, by model."""
    found = {which: _kept(kept / file, list[StepLoss]) for which, file in LOSSES.items()}
    return {which: losses for which, losses in found.items() if losses}


def _kept(file: Path, kind: type[T]) -> T | None:
    if not file.is_file():
        return None
    try:
        return TypeAdapter(kind).validate_json(file.read_bytes())
    except ValidationError as error:
        raise NpftError(f"{str(file)!r} is not what npft tune writes: move it away") from error


def control(work: Workspace, objective: Objective, settings: Tuning) -> Adapter:
    """Train the control, with cross-entropy and no noise; keeps ``control/``.

    Where the objective is a cross-entropy, it is the control's too, with all its options.
    """
    adapter = tuning.control(
        work.model,
        work.calibration,
        objective if isinstance(objective, CrossEntropy) else CrossEntropy(),
        settings,
        seed=work.seed,
        progress=work.progress,
    )
    _keep_adapter(work, adapter, "control", LOSSES["control"])
    return adapter


def _keep_adapter(work: Workspace, adapter: Adapter, name: str, losses: str) -> None:
    with work.folder.writing(name) as draft:
        adapter.save(draft)
    work.folder.write_json(losses, [asdict(loss) for loss in adapter.losses])


def sensitivities_to_quantize(
    work: Workspace,
    model: LanguageModel,
    which: str,
    known: Mapping[str, Tensor] | None = None,
) -> Mapping[str, Tensor] | None:
    """The sensitivities of the very model to be quantized, if a quantizer asks for them.

    ``known`` are those of the model, where they are kept already.
    """
    if not any(quantizer.needs_sensitivity for quantizer in work.quantizers):
        return None
    return dict(sensitivities(work, model, f"score {which}")) if known is None else known


def quantize(
    work: Workspace,
    model: LanguageModel,
    quantizer: Quantizer,
    known: Mapping[str, Tensor] | None,
    keep_as: str | None,
) -> QuantizedModel:
    """Quantize a model; ``keep_as`` names the folder below ``quantized/`` to save it in."""
    quantized = quantizer.quantize(
        model,
        work.batches(),
        known if quantizer.needs_sensitivity else None,
        work.progress,
    )
    if keep_as is not None:
        with work.folder.writing(f"quantized/{keep_as}") as draft:
            quantized.save(draft)
    return quantized


def keep_float(work: Workspace, quantized: QuantizedModel, keep_as: str) -> Path:
    """Keep the dequantized weights as ``dequantized/KEEP_AS``, an ordinary model; its path."""
    with work.folder.writing(f"{DEQUANTIZED}/{keep_as}") as draft:
        models.save(quantized.model, draft)
    return work.folder / DEQUANTIZED / keep_as


def notes(which: str, quantized: QuantizedModel) -> list[str]:
    """What went otherwise than asked when a model was quantized, with its name and setting."""
    return [f"{which} {quantized.label}: {note}" for note in quantized.notes]


def originals(work: Workspace) -> dict[str, Original]:
    """The original's predictions on each text, to compare with."""
    return {name: Original(work.model, windows) for name, windows in work.texts.items()}


def measure(
    work: Workspace,
    references: Mapping[str, Original],
    which: str,
    model: LanguageModel,
    quantized: QuantizedModel | None = None,
) -> list[Row]:
    """Rows of perplexity and KL of one model, quantized or not, on every text, and of the tasks.

    The harness's own report of the tasks goes to ``lm-eval/MODEL-SETTING.json``.
    """
    about: dict[str, Any] = {
        "model": which,
        "quantizer": quantized.quantizer if quantized else "none",
        "bits": quantized.bits if quantized else _float_bits(model),
        "group_size": quantized.group_size if quantized else 0,
        "avg_bits": quantized.average_bits if quantized else float(_float_bits(model)),
        "variant": quantized.variant if quantized else "",
    }
    runnable = quantized.model if quantized else model
    setting = quantized.label if quantized else "float"
    rows = []
    for name, reference in references.items():
        label = f"eval {which} {setting} on {name}"
        quality = evaluate(runnable, reference, work.progress, label)
        shared = {**about, "dataset": name, "tokens": quality.tokens, "context": quality.context}
        rows.append(Row(**shared, metric="perplexity", value=quality.perplexity))
        rows.append(Row(**shared, metric="kl", value=quality.kl))
    if work.tasks is not None:
        arguments = {"path": str(work.folder.path), "model": which}
        if quantized is not None:
            arguments["quant"] = quantized.label
        label = f"tasks {which} {setting}"
        answers = work.tasks.evaluate(runnable, work.progress, label, arguments)
        work.folder.write_json(f"lm-eval/{which}-{setting}.json", answers.report)
        rows += answers.rows(about)
    return rows


def _float_bits(model: LanguageModel) -> int:
    layer = next(iter(model.layers.values()))
    return int(torch.finfo(layer.weight.dtype).bits)
