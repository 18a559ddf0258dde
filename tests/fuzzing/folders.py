"""Folders of which a file or two are damaged."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random

from fuzzing.mutations import Files, damaged_folder
from fuzzing.target import Prepared


@contextmanager
def lying_over(folder: Path, files: Files) -> Iterator[None]:
    """Within this scope ``folder`` has these files in the place of its own."""
    before = {name: (folder / name).read_bytes() for name in files if (folder / name).exists()}
    try:
        for name, content in files.items():
            if content is None:
                (folder / name).unlink()
            else:
                (folder / name).write_bytes(content)
        yield
    finally:
        for name in files:
            (folder / name).unlink(missing_ok=True)
        for name, content in before.items():
            (folder / name).write_bytes(content)


def of_folders(
    folders: Sequence[Path], read: Callable[[Path], object], only: Sequence[str] = ()
) -> Prepared:
    """One of some valid folders with a file or two damaged, among ``only`` if given."""
    valid = {str(folder): _content(folder) for folder in folders}

    def damage(random: Random) -> tuple[str, Files]:
        folder = random.choice(list(valid))
        there = valid[folder]
        return folder, damaged_folder(random, there, [n for n in only or there if n in there])

    def over(chosen: tuple[str, Files]) -> object:
        folder, files = chosen
        with lying_over(Path(folder), files):
            return read(Path(folder))

    return Prepared(damage, over, [(str(folder), {}) for folder in folders])


def _content(folder: Path) -> dict[str, bytes]:
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.name != ".lock")
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}
