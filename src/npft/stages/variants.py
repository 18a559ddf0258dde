"""The models of a run: the original, and those with an adapter merged into them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import cached_property
from typing import Any

from torch import Tensor

from npft import adapters, models
from npft.adapters import Adapter
from npft.artifacts import LanguageModel, Sensitivity
from npft.evaluation import most_sensitive
from npft.folder import RunFolder
from npft.ledger import Kept, Stage
from npft.stages.scoring import Scored, sensitivities
from npft.stages.workspace import Workspace, read_kept

MERGED = "merged"
SENSITIVITY = "sensitivity.json"


class Variant:
    """The original, the control or the tuned model; in memory from when it is first asked for.

    Attributes:
        name: ``original``, ``control`` or ``tuned``.
        inputs: what its weights depend on beside the original's.
    """

    def __init__(
        self,
        work: Workspace,
        name: str,
        inputs: Mapping[str, str],
        model: Callable[[], LanguageModel],
        known: Callable[[], Mapping[str, Tensor] | None] = lambda: None,
    ) -> None:
        """``known`` gives its sensitivities, where they are there already."""
        self.name = name
        self.inputs = dict(inputs)
        self._work = work
        self._model = model
        self._known = known

    @cached_property
    def model(self) -> LanguageModel:
        """The model, not quantized."""
        return self._model()

    @cached_property
    def sensitivities(self) -> Mapping[str, Tensor]:
        """``(out, in)`` of every layer, of this very model."""
        with self._work.ledger.clock.timing("score"):
            known = self._known()
            if known is not None:
                return known
            scores = sensitivities(self._work, self.model, f"score {self.name}")
            return {name: values.to(self.model.home) for name, values in scores}


def original(work: Workspace, scored: Stage[Scored] | None = None) -> Variant:
    """The model as it came; ``scored`` are its scores by the scorer of this run."""
    return Variant(
        work,
        "original",
        {},
        lambda: work.model,
        lambda: None if scored is None else scored().sensitivities,
    )


def tuned(work: Workspace, which: str, adapter: Stage[Adapter]) -> Variant:
    """The model with an adapter merged into it."""
    inputs = {adapter.name: adapter.fingerprint}
    return Variant(work, which, inputs, lambda: adapters.merge(work.model, adapter()))


def merge(work: Workspace, variant: Variant) -> Stage[LanguageModel]:
    """Keep the tuned model as ``merged/``, a plain Hugging Face folder."""

    def keep(model: LanguageModel) -> Kept:
        with work.folder.writing(MERGED) as draft:
            models.save(model, draft)
        return Kept((MERGED,))

    return Stage(
        work.ledger, MERGED, "tune", work.inputs(**variant.inputs),
        make=lambda _: variant.model, keep=keep, load=lambda _: variant.model,
    )  # fmt: skip


def follow_sensitive(
    work: Workspace, scored: Stage[Scored], variant: Variant
) -> Stage[Sensitivity]:
    """What has become of the most sensitive weights; keeps ``sensitivity.json``."""

    def make(_: RunFolder) -> Sensitivity:
        before = scored().largest
        if any(quantizer.needs_sensitivity for quantizer in work.quantizers):
            after = iter(variant.sensitivities.items())
        else:
            after = sensitivities(work, variant.model, "score tuned")
        return most_sensitive.compare(variant.model, before, after)

    def keep(found: Sensitivity) -> Kept:
        work.folder.write_json(SENSITIVITY, asdict(found))
        return Kept((SENSITIVITY,))

    def load(_: Any) -> Sensitivity:
        found = kept_sensitivity(work.folder)
        assert found is not None
        return found

    inputs = work.inputs(**work.scoring(), scores=scored.fingerprint, **variant.inputs)
    return Stage(work.ledger, "sensitivity", "score", inputs, make=make, keep=keep, load=load)


def kept_sensitivity(kept: RunFolder) -> Sensitivity | None:
    """What :func:`follow_sensitive` left in a folder, if anything."""
    return read_kept(kept / SENSITIVITY, Sensitivity)
