"""Every model through every quantizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from npft import checkpoints, fingerprints, models
from npft.artifacts import PackedWeight, QuantizedModel
from npft.contracts import Quantizer
from npft.folder import RunFolder
from npft.ledger import WORK, Kept, Stage, recorded
from npft.stages.variants import Variant
from npft.stages.workspace import Workspace

QUANTIZED = "quantized"
DEQUANTIZED = "dequantized"
"""Where a run folder has quantized models as float ones."""


class Layers:
    """The layers of a model that are quantized already, a file each."""

    def __init__(self, place: RunFolder) -> None:
        self._place = place

    def load(self, name: str) -> PackedWeight | None:
        file = self._place / f"{name}.safetensors"
        return checkpoints.load_layer(file) if file.is_file() else None

    def save(self, name: str, weight: PackedWeight) -> None:
        with self._place.writing(f"{name}.safetensors") as draft:
            checkpoints.save_layer(weight, draft)


def quantize(
    work: Workspace, variant: Variant, quantizer: Quantizer, *, keep: bool
) -> Stage[QuantizedModel]:
    """Quantize a model; ``keep`` it, or only until it is measured.

    The tuned model's are kept as ``quantized/SETTING``, others as ``quantized/MODEL/SETTING``.
    """
    name = f"{QUANTIZED}/{below(variant.name, quantizer.label)}"

    def make(place: RunFolder) -> QuantizedModel:
        known = variant.sensitivities if quantizer.needs_sensitivity else None
        if quantizer.keeps_layers:
            return quantizer.quantize_layers(variant.model, known, work.progress, Layers(place))
        return quantizer.quantize(variant.model, work.batches(), known, work.progress)

    def save(quantized: QuantizedModel) -> Kept:
        place = name if keep else f"{WORK}/{name}"
        with work.folder.writing(place) as draft:
            quantized.save(draft)
        return Kept((place,), {"place": place, "notes": quantized.notes})

    inputs = work.inputs(
        **variant.inputs,
        calibration=work.calibration_fingerprint,
        quantizer=work.described(quantizer),
        **({"scoring": work.scoring()} if quantizer.needs_sensitivity else {}),
    )
    return Stage(
        work.ledger, name, "quantize", inputs,
        make=make, keep=save, load=lambda about: _open(work, about["place"]),
        needs=(name,) if keep else (),
    )  # fmt: skip


def checkpoint(work: Workspace, which: str, setting: str) -> Stage[QuantizedModel]:
    """A quantized model that the folder has, whatever it was made from."""
    place = f"{QUANTIZED}/{below(which, setting)}"
    known = recorded(work.ledger, place, "quantize", lambda _: _open(work, place))
    if known is not None and known.done:
        return known
    inputs = {"files": fingerprints.of_files(work.folder / place)}
    return Stage(
        work.ledger, f"opened/{place}", "quantize", inputs,
        make=lambda _: _open(work, place),
        keep=lambda quantized: Kept((), {"notes": quantized.notes}),
        load=lambda _: _open(work, place),
    )  # fmt: skip


def keep_float(work: Workspace, quantized: QuantizedModel, keep_as: str) -> Path:
    """Keep the dequantized weights as ``dequantized/KEEP_AS``, an ordinary model; its path."""
    with work.folder.writing(f"{DEQUANTIZED}/{keep_as}") as draft:
        models.save(quantized.model, draft)
    return work.folder / DEQUANTIZED / keep_as


def notes(which: str, setting: str, quantized: Stage[QuantizedModel]) -> list[str]:
    """What went otherwise than asked when a model was quantized, with its name and setting."""
    about: Any = quantized.about or {}
    return [f"{which} {setting}: {note}" for note in about.get("notes", ())]


def below(which: str, setting: str) -> str:
    """Where a quantized model is below ``quantized/``."""
    return setting if which == "tuned" else f"{which}/{setting}"


def _open(work: Workspace, place: str) -> QuantizedModel:
    dtype = str(work.model.network.dtype).removeprefix("torch.")
    return checkpoints.load(work.folder / place, device=str(work.model.device), dtype=dtype)
