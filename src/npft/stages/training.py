"""The adapters: the one tuned under noise, and the control's."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from npft import tuning
from npft.adapters import Adapter, load_adapter
from npft.artifacts import LanguageModel, Outliers, StepLoss
from npft.contracts import Objective, Sampler
from npft.errors import NpftError
from npft.folder import RunFolder
from npft.ledger import Kept, Stage, recorded
from npft.objectives.cross_entropy import CrossEntropy
from npft.stages.scoring import Scored, selected, sensitivities
from npft.stages.workspace import Workspace, read_kept
from npft.tuning import State, Tuning

ADAPTERS = {"control": "control", "tuned": "adapter"}
"""The folder of each model's adapter, which is also the name of its stage."""

LOSSES = {"control": "losses-control.json", "tuned": "losses.json"}


class Epochs:
    """The state of a training after its last epoch, in one file."""

    def __init__(self, place: RunFolder) -> None:
        self._place = place

    def load(self) -> State | None:
        file = self._place / "state.safetensors"
        if not file.is_file():
            return None
        try:
            with safe_open(file, framework="pt") as stored:
                tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
                return State(tensors, json.loads(stored.metadata()["numbers"]))
        except (SafetensorError, KeyError, ValueError) as error:
            raise NpftError(f"{str(file)!r} is no state of a training: remove it") from error

    def save(self, state: State) -> None:
        tensors = {n: values.detach().cpu().contiguous() for n, values in state.tensors.items()}
        with self._place.writing("state.safetensors") as draft:
            save_file(tensors, draft, metadata={"numbers": json.dumps(state.numbers)})


def tune(
    work: Workspace,
    scored: Stage[Scored],
    sampler: Sampler,
    objective: Objective,
    settings: Tuning,
) -> Stage[Adapter]:
    """Tune under noise; keeps ``adapter/`` and ``losses.json``."""

    def make(place: RunFolder) -> Adapter:
        scores = scored()

        def rescore(adapted: LanguageModel) -> Mapping[str, Outliers]:
            again = sensitivities(work, adapted, "score again")
            return selected(work, again, scores.gamma, scores.scope)

        return tuning.tune(
            work.model,
            work.calibration,
            scores.outliers,
            sampler,
            objective,
            settings,
            seed=work.seed,
            sensitivities=scores.sensitivities,
            rescore=rescore,
            progress=work.progress,
            checkpoint=Epochs(place),
            processes=work.processes,
        )

    inputs = {
        "scores": scored.fingerprint,
        "calibration": work.calibration_fingerprint,
        "sampler": work.described(sampler),
        "objective": work.described(objective),
        "tuning": settings.with_noise(),
        "seed": work.seed,
        **(work.scoring() if settings.rescore else {}),
    }
    return _training(work, "tuned", "tune", inputs, make)


def control(work: Workspace, objective: Objective, settings: Tuning) -> Stage[Adapter]:
    """Train the control, with cross-entropy and no noise; keeps ``control/``.

    Where the objective is a cross-entropy, it is the control's too, with all its options.
    """
    chosen = objective if isinstance(objective, CrossEntropy) else CrossEntropy()

    def make(place: RunFolder) -> Adapter:
        return tuning.control(
            work.model,
            work.calibration,
            chosen,
            settings,
            seed=work.seed,
            progress=work.progress,
            checkpoint=Epochs(place),
            processes=work.processes,
        )

    inputs = {
        "calibration": work.calibration_fingerprint,
        "objective": work.described(chosen),
        "tuning": settings.without_noise(),
        "seed": work.seed,
    }
    return _training(work, "control", "control", inputs, make)


def kept_adapter(work: Workspace, which: str) -> Stage[Adapter] | None:
    """The adapter of a model that is in the folder, whatever it was made from, if any."""
    return recorded(work.ledger, ADAPTERS[which], "tune", lambda _: _load(work, which))


def kept_losses(kept: RunFolder) -> dict[str, list[StepLoss]]:
    """The training losses in a folder, by model."""
    found = {which: read_kept(kept / file, list[StepLoss]) for which, file in LOSSES.items()}
    return {which: losses for which, losses in found.items() if losses}


def skipped(losses: Mapping[str, list[StepLoss]]) -> list[str]:
    """A sentence for each training that left steps out."""
    sentences = []
    for which, steps in losses.items():
        bad = [step for step in steps if step.skipped is not None]
        if bad:
            sentences.append(
                f"{which}: {len(bad)} of {len(steps)} training steps were skipped, first step "
                f"{bad[0].step}, as {bad[0].skipped}"
            )
    return sentences


def _training(
    work: Workspace,
    which: str,
    kind: str,
    inputs: Mapping[str, Any],
    make: Callable[[RunFolder], Adapter],
) -> Stage[Adapter]:
    name = ADAPTERS[which]

    def keep(adapter: Adapter) -> Kept:
        with work.folder.writing(name) as draft:
            adapter.save(draft)
        work.folder.write_json(LOSSES[which], [asdict(loss) for loss in adapter.losses])
        return Kept((name, LOSSES[which]))

    return Stage(
        work.ledger, name, kind, work.inputs(**inputs),
        make=make, keep=keep, load=lambda _: _load(work, which),
    )  # fmt: skip


def _load(work: Workspace, which: str) -> Adapter:
    adapter = load_adapter(work.folder / ADAPTERS[which])
    return replace(adapter, losses=read_kept(work.folder / LOSSES[which], list[StepLoss]) or [])
