"""What a run folder has to report."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError

from npft.artifacts import Report
from npft.errors import NpftError, in_one_line
from npft.folder import CONFIG

RESULTS = "results.json"
BENCH = "bench.json"

T = TypeVar("T")


class Latency(BaseModel):
    """A row of ``bench.json``, see :class:`npft.bench.measure.Line`."""

    what: str
    variant: str
    tokens: int
    milliseconds: float
    floor_ms: float


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
    return _parsed(Report, file)


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
    settings: dict[str, Any] = {}
    if (run / CONFIG).is_file():
        try:
            settings = tomllib.loads((run / CONFIG).read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
            raise NpftError(f"{str(run / CONFIG)!r} is not TOML: {in_one_line(error)}") from error
    bench = _parsed(Bench, run / BENCH) if (run / BENCH).is_file() else None
    return Found(run.resolve().name, report, settings, bench)


def _parsed(kind: type[T], file: Path) -> T:
    try:
        return TypeAdapter(kind).validate_json(file.read_bytes())
    except OSError as error:
        raise NpftError(f"{str(file)!r} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the whole file"
        raise NpftError(
            f"{str(file)!r} is not a {file.name} of npft, as {where} shows "
            f"({' '.join(first['msg'].split())}): move it away"
        ) from error
