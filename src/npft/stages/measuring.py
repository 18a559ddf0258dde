"""What every model is worth, quantized or not."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import quote

import torch
from pydantic import TypeAdapter

from npft import fingerprints
from npft.artifacts import LanguageModel, QuantizedModel, Row
from npft.errors import NpftError, Unavailable
from npft.evaluation.quality import Original, evaluate, predict
from npft.finite import first_bad_layer
from npft.ledger import Kept, Stage
from npft.stages.variants import Variant
from npft.stages.workspace import Workspace


def originals(work: Workspace) -> dict[str, Original]:
    """The original's predictions on each text, to compare with."""
    return {name: Original(work.model, windows) for name, windows in work.texts.items()}


def measure(
    work: Workspace,
    references: Mapping[str, Original],
    variant: Variant,
    setting: str = "float",
    quantized: Stage[QuantizedModel] | None = None,
) -> list[Row]:
    """Rows of perplexity and KL of one model, quantized or not, on every text, and of the tasks.

    The harness's own report of the tasks goes to ``lm-eval/MODEL-SETTING.json``.

    Raises:
        Unavailable: a quantized model predicts what is not finite.
        NpftError: the model itself does.
    """
    of = f"{variant.name}/{setting}"
    inputs = work.inputs(**variant.inputs)
    if quantized is not None:
        inputs[quantized.name] = quantized.fingerprint

    def about() -> dict[str, Any]:
        return _about(variant, None if quantized is None else quantized())

    def runnable() -> LanguageModel:
        return variant.model if quantized is None else quantized().model

    stages = [
        _rows(
            work,
            f"{of}/{quote(name, safe='')}",
            {**inputs, "text": fingerprints.of_tensor(reference.windows)},
            lambda name=name, reference=reference: _on_text(  # type: ignore[misc]
                work, runnable(), about(), name, reference, setting
            ),
        )
        for name, reference in references.items()
    ]
    if work.tasks is not None:
        asked = work.tasks.settings.model_dump(mode="json")
        own = work.tasks.settings.include_path
        harness = {
            "lm_eval": metadata.version("lm_eval"),
            "files": None if own is None else fingerprints.of_files(Path(own)),
        }
        stages.append(
            _rows(
                work,
                f"{of}/@tasks",
                {**inputs, "tasks": asked, "harness": harness},
                lambda: _on_tasks(work, runnable(), about(), setting),
                (_report(variant.name, setting),),
            )
        )
    return [row for stage in stages for row in stage()]


def _rows(
    work: Workspace,
    of: str,
    inputs: Mapping[str, Any],
    make: Callable[[], list[Row]],
    parts: tuple[str, ...] = (),
) -> Stage[list[Row]]:
    """A stage whose result is rows, which its record holds."""
    return Stage(
        work.ledger,
        f"measured/{of}",
        "evaluate",
        inputs,
        make=lambda _: make(),
        keep=lambda rows: Kept(parts, [asdict(row) for row in rows]),
        load=TypeAdapter(list[Row]).validate_python,
    )


def _on_text(
    work: Workspace,
    model: LanguageModel,
    about: Mapping[str, Any],
    name: str,
    reference: Original,
    setting: str,
) -> list[Row]:
    label = f"eval {about['model']} {setting} on {name}"
    quality = evaluate(model, reference, work.progress, label)
    values = {"perplexity": quality.perplexity, "kl": quality.kl}
    if not all(map(math.isfinite, values.values())):
        where = first_bad_layer(model, lambda: predict(model, reference.batches[0]))
        sentence = (
            f"{about['model']} {setting} predicts what is not finite on {name!r}, first in "
            f"{where}: use --dtype float32, or another setting"
        )
        raise (NpftError if setting == "float" else Unavailable)(sentence)
    shared = {**about, "dataset": name, "tokens": quality.tokens, "context": quality.context}
    return [Row(**shared, metric=metric, value=value) for metric, value in values.items()]


def _on_tasks(
    work: Workspace, model: LanguageModel, about: Mapping[str, Any], setting: str
) -> list[Row]:
    assert work.tasks is not None
    which = about["model"]
    arguments = {"path": str(work.folder.path), "model": which}
    if setting != "float":
        arguments["quant"] = setting
    answers = work.tasks.evaluate(model, work.progress, f"tasks {which} {setting}", arguments)
    work.folder.write_json(_report(which, setting), answers.report)
    return answers.rows(about)


def _report(which: str, setting: str) -> str:
    return f"lm-eval/{which}-{setting}.json"


def _about(variant: Variant, quantized: QuantizedModel | None) -> dict[str, Any]:
    bits = 0 if quantized else _float_bits(variant.model)
    return {
        "model": variant.name,
        "quantizer": quantized.quantizer if quantized else "none",
        "bits": quantized.bits if quantized else bits,
        "group_size": quantized.group_size if quantized else 0,
        "avg_bits": quantized.average_bits if quantized else float(bits),
        "variant": quantized.variant if quantized else "",
    }


def _float_bits(model: LanguageModel) -> int:
    layer = next(iter(model.layers.values()))
    return int(torch.finfo(layer.weight.dtype).bits)
