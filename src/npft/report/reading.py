"""What a run folder has to report."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from npft.artifacts import Report, Sensitivity
from npft.errors import NpftError, abridged, in_one_line
from npft.folder import CONFIG

RESULTS = "results.json"
BENCH = "bench.json"

T = TypeVar("T")


class Latency(BaseModel):
    """A row of ``bench.json``, see :class:`npft.bench.measure.Line`."""

    what: str
    variant: str
    tokens: int = Field(ge=1, lt=2**31)
    milliseconds: float = Field(gt=0, allow_inf_nan=False)
    floor_ms: float = Field(gt=0, allow_inf_nan=False)


class Shown(BaseModel):
    """The tables of ``config.toml`` that a report looks into; whatever else is there is shown."""

    evaluate: dict[str, Any] = {}
    tuning: dict[str, Any] = {}
    scorer: dict[str, Any] = {}
    sampler: dict[str, Any] = {}
    objective: dict[str, Any] = {}
    provenance: dict[str, Any] = {}


class Bench(BaseModel):
    """What a report shows of ``bench.json``."""

    rows: list[Latency]
    environment: dict[str, Any] = {}


@dataclass(frozen=True)
class Found:
    """A run as its folder has it: ``results.json``, ``config.toml`` and, if there, ``bench.json``.

    Attributes:
        name: of the folder.
        settings: the configuration, with its provenance.
    """

    name: str
    report: Report
    settings: dict[str, Any]
    bench: Bench | None = None


def read_results(file: Path) -> Report:
    """The numbers of a run.

    Raises:
        NpftError: the file cannot be read, or is something else.
    """
    report = _parsed(Report, file)
    if report.sensitivity is not None and not _fits(report.sensitivity):
        raise NpftError(
            f"{str(file)!r} is not a {file.name} of npft, as the lists in its sensitivity do not "
            "fit together: move it away"
        )
    return report


def _fits(seen: Sensitivity) -> bool:
    """Whether there are as many values as places, at most a channel for each kind of layer."""
    channels = [
        len(channel.outputs) == len(channel.before) == len(channel.after) > 0
        for channel in seen.channels
    ]
    ranges = {len(counts) for counts in seen.places.values()}
    return 0 < len(channels) <= 2 and all(channels) and len(ranges) == 1 and 0 not in ranges


def read_run(run: Path) -> Found:
    """Everything that a run folder has for a report.

    Raises:
        NpftError: it has no results yet, or a file is broken.
    """
    if not (run / RESULTS).is_file():
        raise NpftError(
            f"{str(run)!r} has no {RESULTS}: give the folder of a finished npft run, or npft eval "
            "it first"
        )
    report = read_results(run / RESULTS)
    settings = _settings(run / CONFIG) if (run / CONFIG).is_file() else {}
    bench = _parsed(Bench, run / BENCH) if (run / BENCH).is_file() else None
    return Found(run.resolve().name, report, settings, bench)


def _settings(file: Path) -> dict[str, Any]:
    try:
        settings = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise NpftError(f"{str(file)!r} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise NpftError(f"{str(file)!r} is not TOML: {in_one_line(error)}") from error
    with _telling(file):
        Shown.model_validate(settings)
    return settings


def _parsed(kind: type[T], file: Path) -> T:
    try:
        content = file.read_bytes()
    except OSError as error:
        raise NpftError(f"{str(file)!r} cannot be read: {error.strerror}") from error
    with _telling(file):
        return TypeAdapter(kind).validate_json(content)


@contextmanager
def _telling(file: Path) -> Iterator[None]:
    """Tell the first thing in a file that is not as npft writes it."""
    try:
        yield
    except ValidationError as error:
        first = error.errors()[0]
        where = abridged(".".join(str(part) for part in first["loc"])) or "the whole file"
        raise NpftError(
            f"{str(file)!r} is not a {file.name} of npft, as {where} shows "
            f"({' '.join(first['msg'].split())}): move it away"
        ) from error
