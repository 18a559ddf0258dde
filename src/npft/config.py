"""What a run is: one validated object, from TOML, flags and ``-o`` options."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, Literal

import tomli_w
from pydantic import BaseModel, ConfigDict, Field

from npft import recipes
from npft.errors import NpftError, abridged
from npft.evaluation.harness_tasks import TaskSettings
from npft.outliers import Scope
from npft.plugins import build

PROVENANCE = "provenance"
"""The table of a written config.toml that tells how a run came about; it configures nothing."""


class Choice(BaseModel):
    """A plugin by name, with its options."""

    model_config = ConfigDict(frozen=True, extra="allow")

    name: str

    @property
    def options(self) -> dict[str, Any]:
        """Everything but the name."""
        return dict(self.model_extra or {})


class RunConfig(BaseModel):
    """One run. Field names are the words of the command line and of config.toml."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    model: str = Field(description="Hugging Face folder, hub id or .gguf file")
    output: str = Field(description="run folder")
    recipe: str = Field(recipes.DEFAULT, description="what stands in for the defaults below")
    calibration: str = Field("builtin", description=".jsonl, .txt, hub data set id or 'builtin'")
    evaluate: dict[str, str] = Field(
        default_factory=lambda: {"builtin": "builtin"}, description="texts to evaluate on, by name"
    )
    samples: int = Field(128, ge=1, description="calibration windows")
    context: int = Field(512, ge=2, description="tokens per window")
    eval_samples: int = Field(64, ge=1, description="evaluation windows per text, at most")
    score_batch: int = Field(
        0, ge=0, description="windows per batch when scoring, 0: as many as fill the device"
    )
    gamma: float = Field(1.0, description="share of the weights that get noise, in (0, 1]")
    scope: Scope = Field(
        "matrix", description="where the top gamma is taken: each matrix, or the whole model"
    )
    seed: int = Field(0, ge=0, description="the one seed of all randomness")
    deterministic: bool = Field(
        False, description="on a GPU, take algorithms that give the same bits each time"
    )
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    memory: Literal["auto", "resident", "sharded", "streamed"] = Field(
        "auto",
        description="resident: the model on the device; streamed: one block at a time, the others "
        "in host memory; sharded: the others spread over the processes' devices; auto: what fits",
    )
    dtype: str = Field("float32", description="float32, bfloat16 or float16")
    trust_remote_code: bool = Field(False, description="let the model's own code run")
    allow_pickle: bool = Field(False, description="open pickle weights, which can run code")
    control: bool = Field(True, description="also train the control: the same with no noise")
    scorer: Choice = Choice(name="fisher")
    sampler: Choice = Choice(name="residual")
    objective: Choice = Choice(name="kl")
    tuning: dict[str, Any] = Field(default_factory=dict, description="see npft.tuning.Tuning")
    quant: list[Choice] = Field(
        default_factory=lambda: [Choice(name="rtn"), Choice(name="kmeans")],
        description="quantizers, each at every bit width",
    )
    bits: list[int] = Field(default_factory=lambda: [4, 3], min_length=1, description="bit widths")
    lm_eval: TaskSettings = Field(
        default_factory=TaskSettings, description="tasks of lm-evaluation-harness"
    )


def make(values: dict[str, Any]) -> RunConfig:
    """Validate values, over those of their recipe, into a RunConfig.

    Raises:
        NpftError: an unknown key or recipe, or a value out of range, in one sentence.
    """
    config: RunConfig = build(RunConfig, "the run", layered({}, values))
    for width in config.bits:
        if not 2 <= width <= 8:
            raise NpftError(f"bits={width} is outside 2..8: choose a width in that range")
    return config


def layered(defaults: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """``values`` over those of the recipe that they name, over ``defaults``.

    ``tuning`` is merged key by key; everything else, a plugin with its options too, is taken
    whole from the highest layer that has it. To do it twice changes nothing.

    Raises:
        NpftError: there is no such recipe.
    """
    recipe = recipes.read(values.get("recipe", recipes.DEFAULT))
    merged: dict[str, Any] = {}
    for layer in (defaults, recipe, values):
        tunings = merged.get("tuning"), layer.get("tuning")
        merged.update(layer)
        if all(isinstance(tuning, dict) for tuning in tunings):
            merged["tuning"] = {**tunings[0], **tunings[1]}  # type: ignore[dict-item]
    return merged


def read(path: Path) -> dict[str, Any]:
    """The values of a TOML file, such as the config.toml of a run, without its provenance.

    Raises:
        NpftError: the file is missing or not TOML.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise NpftError(f"config {str(path)!r} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise NpftError(f"config {str(path)!r} is not TOML: {error}") from error
    values.pop(PROVENANCE, None)
    return values


def dumps(config: RunConfig, provenance: dict[str, Any]) -> str:
    """The full configuration as TOML, defaults included."""
    values = config.model_dump(mode="json", exclude_none=True)
    return tomli_w.dumps({**values, PROVENANCE: provenance})


def set_option(values: dict[str, Any], assignment: str) -> None:
    """Apply one ``KIND.OPTION=VALUE`` to configuration values, in place.

    KIND is scorer, sampler, objective, tuning, quant (every quantizer) or quant.NAME. VALUE is
    read as TOML where it is TOML (``8``, ``true``, ``[3, 4]``), else as a word.

    Raises:
        NpftError: the assignment is not of that form, or names a quantizer that is not chosen.
    """
    path, equals, text = assignment.partition("=")
    parts = path.strip().split(".")
    if not equals or len(parts) < 2 or not all(parts):
        raise NpftError(f"option {_shown(assignment)} is not of the form KIND.OPTION=VALUE")
    kind, value = parts[0], _value(text.strip())
    if kind == "quant":
        _set_quantizer(values, parts[1:], value, assignment)
    elif kind == "tuning" and len(parts) == 2:
        values["tuning"] = {**table(values, "tuning"), parts[1]: value}
    elif kind in ("scorer", "sampler", "objective") and len(parts) == 2:
        default = RunConfig.model_fields[kind].default.model_dump()
        values[kind] = {**table(layered({kind: default}, values), kind), parts[1]: value}
    else:
        raise NpftError(
            f"option {_shown(assignment)} has no such kind: use scorer, sampler, objective, "
            "tuning, quant or quant.NAME"
        )


def table(values: dict[str, Any], name: str) -> dict[str, Any]:
    """The table of that name, empty where there is none.

    Raises:
        NpftError: something else has its name.
    """
    found = values.get(name, {})
    if not isinstance(found, dict):
        raise NpftError(
            f"{name} of the configuration is a {type(found).__name__}: make it a table of options"
        )
    return found


def _set_quantizer(values: dict[str, Any], path: list[str], value: Any, assignment: str) -> None:
    default = [choice.model_dump() for choice in _default_quantizers()]
    chosen = layered({}, values).get("quant") or default
    wanted = path[0] if len(path) == 2 else None
    if not isinstance(chosen, list) or not all(
        isinstance(choice, dict) and isinstance(choice.get("name"), str) for choice in chosen
    ):
        raise NpftError("quant of the configuration is no list of tables with a name: make it one")
    names = [choice["name"] for choice in chosen]
    if len(path) > 2 or (wanted is not None and wanted not in names):
        raise NpftError(
            f"option {_shown(assignment)} names no chosen quantizer: chosen are {', '.join(names)}"
        )
    values["quant"] = [
        {**choice, path[-1]: value} if wanted in (None, choice["name"]) else choice
        for choice in chosen
    ]


def _default_quantizers() -> list[Choice]:
    factory: Any = RunConfig.model_fields["quant"].default_factory
    chosen: list[Choice] = factory()
    return chosen


def _shown(assignment: str) -> str:
    return repr(abridged(assignment))


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, RecursionError):
        return text
