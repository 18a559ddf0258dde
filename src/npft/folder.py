"""The run folder: locked while in use, and every part of it written whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from npft.errors import NpftError
from npft.processes import Processes

CONFIG = "config.toml"
LOCK = ".lock"
STAGES = ".stages"
"""Where a run folder says what each part was made from, see :mod:`npft.ledger`."""

_DRAFTS = ".*.part"


class RunFolder:
    """A folder with ``config.toml``, ``scores/``, ``adapter/``, ``merged/``, ``results.json``…"""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """A temporary path to write ``name`` to; it takes its place when the scope ends well.

        By then it is on the disk, not only on its way there, so that not even a power cut leaves
        a half of it.

        Raises:
            NpftError: the disk is full or cannot be written; nothing half-written is left.
        """
        target = self.path / name
        draft = target.with_name(f".{target.name}.part")
        old = target.with_name(f".{target.name}.old.part")
        self._check_inside(target)
        try:
            _remove(draft)
            new = [place for place in target.parents if not place.exists()]
            target.parent.mkdir(parents=True, exist_ok=True)
            yield draft
            _flush(draft)
            if target.is_dir():  # a folder cannot take the place of one with something in it
                _remove(old)
                os.replace(target, old)
            os.replace(draft, target)
            for place in (target.parent, *(made.parent for made in new)):
                _flush_entry(place)
        except OSError as error:
            raise NpftError(f"{str(target)!r} cannot be written: {error.strerror}") from error
        except Exception as error:
            if _is_full(error):
                raise NpftError(f"{str(target)!r} cannot be written: disk full") from error
            raise
        finally:
            _remove(draft)
            _remove(old)

    def write_text(self, name: str, text: str) -> None:
        """Write one text file, whole."""
        with self.writing(name) as draft:
            draft.write_text(text, encoding="utf-8")

    def write_json(self, name: str, value: object) -> None:
        """Write one JSON file, whole."""
        self.write_text(name, json.dumps(value, indent=2) + "\n")

    def remove(self, name: str) -> None:
        """Remove a file or folder, if it is there.

        Raises:
            NpftError: it cannot be removed.
        """
        self._check_inside(self.path / name)
        try:
            _remove(self.path / name)
        except OSError as error:
            raise NpftError(
                f"{str(self.path / name)!r} cannot be removed: {error.strerror}"
            ) from error

    def _check_inside(self, target: Path) -> None:
        inside = target.parent.resolve().is_relative_to(self.path.resolve())
        if not inside or target.name in ("", ".."):
            raise NpftError(
                f"{str(target)!r} is outside of its run folder: remove the link or record that "
                "leads there"
            )


@contextmanager
def create(path: Path) -> Iterator[RunFolder]:
    """Make and lock a run folder, or lock one to go on with.

    If the run fails before anything is kept, a new folder is removed again.

    Raises:
        NpftError: another run is using it, it holds something else, or it cannot be made.
    """
    absent = [place for place in (path, *path.parents) if not place.exists()]
    if path.is_dir() and not (path / STAGES).is_dir() and any(map(_matters, path.iterdir())):
        with _locked(path):
            pass
        raise NpftError(
            f"output folder {str(path)!r} is not empty, and has no run to go on with: give another "
            "--output, or remove it"
        )
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise NpftError(f"output folder {str(path)!r} cannot be made: {error.strerror}") from error
    try:
        with _locked(path):
            _sweep(path)
            (path / STAGES).mkdir(exist_ok=True)
            yield RunFolder(path)
    finally:
        if absent and not any(map(_matters, path.iterdir())):
            shutil.rmtree(path)
            for place in absent[1:]:
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
        _sweep(path)
        yield RunFolder(path)


@contextmanager
def shared(
    opening: Callable[[Path], AbstractContextManager[RunFolder]], path: Path, processes: Processes
) -> Iterator[RunFolder]:
    """The run folder, opened and locked by the main process and seen by the others.

    Raises:
        NpftError: as ``opening`` does; a process does not see the main one's folder.
    """
    if processes.main:
        with opening(path) as kept:
            processes.decided(lambda: None)
            yield kept
        return
    processes.decided(lambda: None)
    if not (path / LOCK).is_file():
        raise NpftError(
            f"output folder {str(path)!r} is not seen by process {processes.rank}: put it on a "
            "file system that all machines share"
        )
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


def _matters(entry: Path) -> bool:
    """Whether an entry of a folder is more than what a run that kept nothing may leave."""
    if entry.name == STAGES:
        return any(entry.iterdir())
    return entry.name != LOCK and not entry.match(_DRAFTS)


def _sweep(path: Path) -> None:
    """Remove what a killed run had begun to write; while the folder is locked, no other does."""
    for draft in list(path.rglob(_DRAFTS)):
        _remove(draft)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    """Have the system write a file, or a folder with everything in it, to the disk."""
    if path.is_dir():
        for entry in path.iterdir():
            _flush(entry)
    _flush_entry(path)


def _flush_entry(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _is_full(error: Exception) -> bool:
    # safetensors and tokenizers report the operating system's error as text.
    return "os error 28" in str(error).lower() or "no space left" in str(error).lower()
