"""How sensitive every weight is, and which are the outliers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from npft import data, outliers, score_files
from npft.artifacts import LanguageModel, Outliers
from npft.errors import NpftError
from npft.evaluation.most_sensitive import MostSensitive
from npft.folder import RunFolder
from npft.ledger import Kept, Stage, recorded
from npft.outliers import Scope
from npft.stages.workspace import Workspace

SCORES = "scores"
OUTLIERS = f"{SCORES}/outliers.safetensors"
LARGEST = f"{SCORES}/largest.safetensors"
SENSITIVITIES = f"{SCORES}/sensitivities.safetensors"


@dataclass(frozen=True)
class Scored:
    """What the score stage gives: positions, and all sensitivities if somebody needs them.

    ``largest`` are the most sensitive weights, whatever gamma is.
    """

    outliers: Mapping[str, Outliers]
    gamma: float
    scope: Scope
    sensitivities: Mapping[str, Tensor] | None
    largest: MostSensitive


def score(work: Workspace, gamma: float, scope: Scope, *, keep: bool) -> Stage[Scored]:
    """Score the weights and select the outliers; ``keep`` the sensitivities as well."""

    def make(_: RunFolder) -> Scored:
        kept: dict[str, Tensor] = {}
        largest = MostSensitive()

        def stream() -> Iterator[tuple[str, Tensor]]:
            for name, values in largest.watch(sensitivities(work, work.model, "score")):
                if keep:
                    kept[name] = values.to(work.model.home)
                yield name, values

        chosen = selected(work, stream(), gamma, scope)
        return Scored(chosen, gamma, scope, kept if keep else None, largest)

    parts = (OUTLIERS, LARGEST, *([SENSITIVITIES] if keep else []))

    def save(scored: Scored) -> Kept:
        with work.folder.writing(SCORES) as draft:
            draft.mkdir()
            _save_outliers(scored, draft / Path(OUTLIERS).name)
            scored.largest.save(draft / Path(LARGEST).name)
            if scored.sensitivities is not None:
                on_cpu = {
                    n: values.cpu().contiguous() for n, values in scored.sensitivities.items()
                }
                save_file(on_cpu, draft / Path(SENSITIVITIES).name)
        work.ledger.settle("model", work.model_fingerprint)
        return Kept(parts)

    inputs = work.inputs(**work.scoring(), gamma=gamma, scope=scope)
    return Stage(
        work.ledger, SCORES, "score", inputs,
        make=make, keep=save, load=lambda _: _load(work), needs=parts,
    )  # fmt: skip


def load_scored(work: Workspace) -> Stage[Scored]:
    """What an earlier score stage left in the folder, whatever it was made from.

    Raises:
        NpftError: there is nothing.
    """
    found = recorded(work.ledger, SCORES, "score", lambda _: _load(work))
    if found is None:
        raise NpftError(f"{str(work.folder.path)!r} has no scores yet: run npft score first")
    return found


def sensitivities(
    work: Workspace, model: LanguageModel, label: str
) -> Iterator[tuple[str, Tensor]]:
    """The scorer's stream for a model on the calibration windows.

    Several processes score a share of the windows each, and yield the same sums.
    """
    shared = work.scorer.sums_over_windows
    windows = work.processes.share(work.calibration) if shared else work.calibration
    batches = data.batches(windows, work.score_batch, model.device) if len(windows) else iter(())
    count = -(-len(windows) // work.score_batch)
    for name, values in work.scorer.score(model, work.progress.track(batches, label, count)):
        if shared:
            work.processes.add([values])
        yield name, values
        del values  # before the scorer makes the next


def selected(
    work: Workspace, scores: Iterator[tuple[str, Tensor]], gamma: float, scope: Scope
) -> dict[str, Outliers]:
    """The top gamma of a scorer's stream."""
    if scope == "matrix":
        return outliers.select(scores, gamma, work.model.home)
    total = sum(layer.out_features * layer.in_features for layer in work.model.layers.values())
    chosen = outliers.select_across(scores, gamma, total)
    return {name: found.on(work.model.home) for name, found in chosen.items()}


def _load(work: Workspace) -> Scored:
    layers, device = work.model.layers, str(work.model.home)
    chosen, gamma, scope = score_files.outliers(work.folder / OUTLIERS, layers, device)
    file = work.folder / SENSITIVITIES
    known = score_files.sensitivities(file, layers, device) if file.is_file() else None
    largest = score_files.most_sensitive(work.folder / LARGEST, layers)
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
