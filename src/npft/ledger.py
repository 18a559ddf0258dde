"""What a run folder has already, and what each part of it was made from.

As in a build system, a stage is known by the fingerprint of all that its result depends on, so it
has one before it is made. Beside the results the folder has a record of each stage, written last.
A stage whose record has its fingerprint is done; any other is made, and what was made from
another result of it goes. So a run that was killed goes on where it was when it is started again,
and a changed option redoes what depends on it.

While a stage is made, its own checkpoints (epochs, layers) lie below ``.work``, in a folder whose
name has the fingerprint; they go when the stage is done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import TypeAdapter, ValidationError

from npft import fingerprints
from npft.clock import Clock
from npft.errors import NpftError
from npft.folder import STAGES, RunFolder
from npft.processes import ALONE, Processes
from npft.progress import Progress

WORK = ".work"
"""Where a run folder keeps what is only needed to go on."""

T = TypeVar("T")


@dataclass(frozen=True)
class Record:
    """What is noted of a stage that is done.

    Attributes:
        inputs: what the result depends on; other stages by their name and fingerprint.
        parts: files and folders in the run folder that are the result.
        about: what else is worth knowing of it.
        seconds: how long it took, without other stages that it asked for.
    """

    fingerprint: str
    inputs: dict[str, Any]
    parts: list[str]
    about: Any = None
    seconds: float = 0.0


class Ledger:
    """The records of one run folder, and the seconds of its stages."""

    def __init__(self, folder: RunFolder, progress: Progress, processes: Processes = ALONE) -> None:
        self.folder = folder
        self.progress = progress
        self.processes = processes
        self.clock = Clock()
        self.reused: list[str] = []

    def read(self, name: str) -> Record | None:
        """The record of a stage, if there is one.

        Raises:
            NpftError: it is none.
        """
        file = self.folder / STAGES / f"{name}.json"
        if not file.is_file():
            return None
        try:
            return TypeAdapter(Record).validate_json(file.read_bytes())
        except ValidationError as error:
            raise NpftError(f"{str(file)!r} is no record of npft's: remove it") from error

    def write(self, name: str, record: Record) -> None:
        """Note that a stage is done; what was made from another result of it goes."""
        self.folder.write_json(f"{STAGES}/{name}.json", asdict(record))
        self.settle(name, record.fingerprint)

    def erase(self, name: str) -> None:
        """Remove a record, before the parts it speaks of change."""
        self.folder.remove(f"{STAGES}/{name}.json")

    def settle(self, name: str, fingerprint: str) -> None:
        """From here on ``name`` has this fingerprint: what was made from another one goes."""
        for other, record in list(self._records()):
            if record.inputs.get(name, fingerprint) != fingerprint:
                self.forget(other)

    def forget(self, name: str) -> None:
        """Remove a stage's record and result, and everything that was made from it."""
        record = self.read(name)
        if record is None:
            return
        self.erase(name)
        for other, later in list(self._records()):
            if later.inputs.get(name) == record.fingerprint:
                self.forget(other)
        for part in record.parts:
            if (self.folder / part).exists():
                self.progress.note(f"{part} is no longer of this run: removed")
                self.folder.remove(part)

    def tell(self) -> None:
        """Say which stages were done already, in one sentence."""
        if not self.reused:
            return
        measured = sum(name.startswith("measured/") for name in self.reused)
        names = [name for name in self.reused if not name.startswith("measured/")]
        names += [f"{measured} measurement{'s' * (measured > 1)}"] if measured else []
        self.progress.note(f"{str(self.folder.path)!r} has already: {', '.join(names)}")
        self.reused.clear()

    def scratch(self, name: str, fingerprint: str) -> RunFolder:
        """Where a stage keeps what is done of it; what other makings left there goes."""
        place, last = (self.folder / WORK / name).parent, Path(name).name
        for other in place.glob("*@*") if self.processes.main else ():
            stage, _, of = other.name.rpartition("@")
            if stage == last and of != fingerprint:
                RunFolder(place).remove(other.name)
        return RunFolder(place / f"{last}@{fingerprint}")

    def tidy(self) -> None:
        """Remove what was only needed to go on, now that nothing is left to do."""
        self.tell()
        self.folder.remove(WORK)

    def _records(self) -> Iterator[tuple[str, Record]]:
        place = self.folder / STAGES
        for file in sorted(place.rglob("*.json")):
            name = str(file.relative_to(place)).removesuffix(".json")
            record = self.read(name)
            if record is not None:
                yield name, record


@dataclass(frozen=True)
class Kept:
    """Where a result was kept, and what its record should say about it."""

    parts: tuple[str, ...] = ()
    about: Any = None


class Stage(Generic[T]):
    """A result that is made once; calling the stage gives it, made now or read from the folder."""

    def __init__(
        self,
        ledger: Ledger,
        name: str,
        kind: str,
        inputs: Mapping[str, Any],
        *,
        make: Callable[[RunFolder], T],
        keep: Callable[[T], Kept],
        load: Callable[[Any], T],
        needs: tuple[str, ...] = (),
    ) -> None:
        """Describe a stage; nothing happens yet.

        Args:
            ledger: of the folder it belongs to.
            name: of its record, and of its fingerprint among the inputs of other stages.
            kind: among which its seconds count.
            inputs: all that the result depends on, ready for JSON.
            make: makes the result; gets a place for checkpoints of its own.
            keep: writes the result into the folder.
            load: reads it from there; gets what the record says about it.
            needs: parts without which the stage is not done.
        """
        self.name = name
        self.inputs = dict(inputs)
        self.fingerprint = fingerprints.of_values(self.inputs)
        self._ledger = ledger
        self._kind = kind
        self._make, self._keep, self._load = make, keep, load
        self._needs = needs
        self._result: tuple[T, ...] = ()
        self._found = False

    def __call__(self) -> T:
        """The result, held from now on."""
        self.ensure()
        if not self._result:
            self._result = (self._load(self.about),)
        return self._result[0]

    @property
    def about(self) -> Any:
        """What was noted of this result, also where its parts are gone."""
        record = self._record()
        return None if record is None else record.about

    @property
    def done(self) -> bool:
        """Whether the folder has the result."""
        record = self._record()
        if record is None or not set(self._needs) <= set(record.parts):
            return False
        return all((self._ledger.folder / part).exists() for part in record.parts)

    def ensure(self) -> Stage[T]:
        """Make the result, unless the folder has it.

        Of several processes each makes its part, and the main one decides and keeps the result.
        """
        if self._result:
            return self
        processes = self._ledger.processes
        if not processes.decided(lambda: self.done):
            self._result = (self._made() if processes.main else self._helped(),)
        elif processes.main and not self._found:
            self._found = True
            self._ledger.settle(self.name, self.fingerprint)
            self._ledger.reused.append(self.name)
            seconds, record = self._ledger.clock.seconds, self._record()
            assert record is not None
            seconds[self._kind] = seconds.get(self._kind, 0.0) + record.seconds
        return self

    def release(self) -> None:
        """Let go of the result, and of the parts that were kept to go on only."""
        self._result = ()
        record = self._record()
        for part in record.parts if record is not None else ():
            if part.startswith(WORK):
                self._ledger.folder.remove(part)

    def _record(self) -> Record | None:
        record = self._ledger.read(self.name)
        return record if record is not None and record.fingerprint == self.fingerprint else None

    def _helped(self) -> T:
        return self._make(self._ledger.scratch(self.name, self.fingerprint))

    def _made(self) -> T:
        ledger = self._ledger
        ledger.tell()
        old = ledger.read(self.name)
        if old is not None and old.fingerprint != self.fingerprint:
            reasons = "; ".join(differences(old.inputs, self.inputs))
            ledger.progress.note(f"{self.name} is made again: {reasons}")
        scratch = ledger.scratch(self.name, self.fingerprint)
        before = ledger.clock.seconds.get(self._kind, 0.0)
        with ledger.clock.timing(self._kind):
            result = self._make(scratch)
            ledger.erase(self.name)
            kept = self._keep(result)
            for part in set(old.parts if old is not None else ()) - set(kept.parts):
                ledger.folder.remove(part)
        seconds = ledger.clock.seconds[self._kind] - before
        record = Record(self.fingerprint, self.inputs, list(kept.parts), kept.about, seconds)
        ledger.write(self.name, record)
        RunFolder(scratch.path.parent).remove(scratch.path.name)
        return result


def recorded(ledger: Ledger, name: str, kind: str, load: Callable[[Any], T]) -> Stage[T] | None:
    """The stage that a record tells of, whatever it was made from; None without a record."""
    record = ledger.read(name)
    if record is None:
        return None

    def gone(_: RunFolder) -> T:
        raise NpftError(
            f"{str(ledger.folder.path)!r} has not all of {', '.join(record.parts)} any more: run "
            "again what made it"
        )

    return Stage(ledger, name, kind, record.inputs, make=gone, keep=lambda _: Kept(), load=load)


def differences(old: Mapping[str, Any], new: Mapping[str, Any], within: str = "") -> list[str]:
    """What changed from some inputs to others, one phrase each."""
    phrases = []
    for key in dict.fromkeys([*old, *new]):
        name, was, now = f"{within}{key}", old.get(key), new.get(key)
        if was == now:
            continue
        if isinstance(was, dict) and isinstance(now, dict):
            phrases += differences(was, now, f"{name}.")
        elif fingerprints.looks_like_one(was) and fingerprints.looks_like_one(now):
            phrases.append(f"{name} is another")
        else:
            phrases.append(f"{name} was {was}, is {now}")
    return phrases
