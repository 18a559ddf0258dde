"""The run folder: locked while in use, and every part of it written whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from npft.errors import NpftError

CONFIG = "config.toml"
LOCK = ".lock"


class RunFolder:
    """A folder with ``config.toml``, ``scores/``, ``adapter/``, ``merged/``, ``results.json``…"""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """A temporary path to write ``name`` to; it takes its place when the scope ends well.

        Raises:
            NpftError: the disk is full or cannot be written; nothing half-written is left.
        """
        target = self.path / name
        draft = target.with_name(f".{target.name}.part")
        if not target.parent.resolve().is_relative_to(self.path.resolve()):
            raise NpftError(
                f"{str(target)!r} is outside of its run folder: remove the link that leads there"
            )
        _remove(draft)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            yield draft
            _remove(target)
            os.replace(draft, target)
        except OSError as error:
            raise NpftError(f"{str(target)!r} cannot be written: {error.strerror}") from error
        except Exception as error:
            if _is_full(error):
                raise NpftError(f"{str(target)!r} cannot be written: disk full") from error
            raise
        finally:
            _remove(draft)

    def write_text(self, name: str, text: str) -> None:
        """Write one text file, whole."""
        with self.writing(name) as draft:
            draft.write_text(text, encoding="utf-8")

    def write_json(self, name: str, value: object) -> None:
        """Write one JSON file, whole."""
        self.write_text(name, json.dumps(value, indent=2) + "\n")


@contextmanager
def create(path: Path) -> Iterator[RunFolder]:
    """Make and lock a new run folder; if the run fails before anything is kept, remove it.

    Raises:
        NpftError: another run is using it, it already holds something, or it cannot be made.
    """
    absent = [place for place in (path, *path.parents) if not place.exists()]
    if path.is_dir() and any(entry.name != LOCK for entry in path.iterdir()):
        with _locked(path):
            pass
        raise NpftError(
            f"output folder {str(path)!r} is not empty: give another --output, or remove it"
        )
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise NpftError(f"output folder {str(path)!r} cannot be made: {error.strerror}") from error
    try:
        with _locked(path):
            yield RunFolder(path)
    finally:
        if absent and not any(entry.name != LOCK for entry in path.iterdir()):
            (path / LOCK).unlink(missing_ok=True)
            for place in absent:
                place.rmdir()


@contextmanager
def opened(path: Path) -> Iterator[RunFolder]:
    """Lock an existing run folder.

    Raises:
        NpftError: it is no run folder, or another run is using it.
    """
    if not (path / CONFIG).is_file():
        raise NpftError(
            f"{str(path)!r} is no run folder: it has no {CONFIG}; start with npft run or npft score"
        )
    with _locked(path):
        yield RunFolder(path)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """The operating system drops this lock when its holder dies, so a crash leaves none behind."""
    lock = FileLock(path / LOCK)
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        raise NpftError(
            f"output folder {str(path)!r} is in use by another run: wait for it, or give another "
            "--output"
        ) from error
    except OSError as error:
        raise NpftError(
            f"output folder {str(path)!r} cannot be written: {error.strerror}"
        ) from error
    try:
        yield
    finally:
        lock.release()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _is_full(error: Exception) -> bool:
    # safetensors and tokenizers report the operating system's error as text.
    return "os error 28" in str(error).lower() or "no space left" in str(error).lower()
