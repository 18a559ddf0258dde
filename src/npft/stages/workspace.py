"""What all stages share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from npft import data, fingerprints
from npft.artifacts import LanguageModel
from npft.contracts import Plugin, Quantizer, Scorer
from npft.errors import NpftError
from npft.evaluation.harness import Tasks
from npft.folder import RunFolder
from npft.ledger import Ledger
from npft.processes import Processes
from npft.progress import Progress

T = TypeVar("T")


@dataclass(frozen=True)
class Workspace:
    """Everything that stages share: where, on what model and text, and how to show progress.

    Attributes:
        ledger: what the folder has already.
        quantizers: those that can do the model.
        unavailable: why the others cannot, by label.
        versions: of npft and of the libraries that its numbers depend on.
        packages: name and version of the packages that plugins come from, by class.
    """

    ledger: Ledger
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
    versions: Mapping[str, str] = field(default_factory=dict)
    packages: Mapping[type[Plugin], str] = field(default_factory=dict)

    @property
    def folder(self) -> RunFolder:
        """The run folder."""
        return self.ledger.folder

    @property
    def processes(self) -> Processes:
        """Those that share this run's scoring and tuning."""
        return self.ledger.processes

    def disband(self) -> None:
        """All that is shared is done: the main process goes on alone, with the whole model."""
        if self.model.stream is not None:
            self.model.stream.settle()
        self.processes.disband()

    def batches(self) -> Iterator[Tensor]:
        """Calibration windows in batches on the model's device."""
        return data.batches(self.calibration, self.score_batch, self.model.device)

    @cached_property
    def model_fingerprint(self) -> str:
        """Of the original model's weights."""
        return fingerprints.of_model(self.model)

    @cached_property
    def calibration_fingerprint(self) -> str:
        """Of the calibration windows."""
        return fingerprints.of_tensor(self.calibration)

    def inputs(self, **more: Any) -> dict[str, Any]:
        """What every stage depends on, and what one of them depends on beside that."""
        return {
            "model": self.model_fingerprint,
            "device": device_name(self.model.device),
            "versions": dict(self.versions),
            **more,
        }

    def described(self, plugin: Plugin) -> dict[str, Any]:
        """A plugin, its options and its package, as the input of a stage."""
        package = self.packages.get(type(plugin), "")
        return {"name": plugin.name, "package": package, **plugin.model_dump(mode="json")}

    def scoring(self) -> dict[str, Any]:
        """What sensitivities depend on beside the model."""
        return {
            "calibration": self.calibration_fingerprint,
            "scorer": self.described(self.scorer),
            "score_batch": self.score_batch,
        }


def device_name(device: torch.device) -> str:
    """The kind of machine that numbers come from, as far as torch knows it."""
    if device.type != "cuda":
        return device.type
    name = torch.cuda.get_device_name(device)
    return f"{name}, deterministic" if torch.are_deterministic_algorithms_enabled() else name


def read_kept(file: Path, kind: type[T]) -> T | None:
    """The values in a JSON file of the run folder, if it is there.

    Raises:
        NpftError: it has something else in it.
    """
    if not file.is_file():
        return None
    try:
        return TypeAdapter(kind).validate_json(file.read_bytes())
    except ValidationError as error:
        raise NpftError(f"{str(file)!r} is not what npft tune writes: move it away") from error
