"""Tries damaged inputs on readers, in a process with limits on memory and time per input.

    python -m fuzzing.worker FOLDER SECONDS MEGABYTES TARGET:INPUTS…

Prints a line of JSON per target. The input at hand is in FOLDER/input.pickle, so that it is known
if the process dies of it.
"""

from __future__ import annotations

import faulthandler
import json
import pickle
import resource
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any

from fuzzing.outcome import INPUT, Failure, Outcome
from fuzzing.target import Prepared, Target, empty
from fuzzing.wrong import WRONG
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from npft.errors import NpftError

LONGEST = 1500
"""Characters of a refusal."""

OUT_OF_MEMORY = ("MemoryError", "can't allocate memory", "not enough memory", "bad_alloc")


def main(folder: Path, seconds: float, megabytes: int, wanted: list[str]) -> None:
    """See the module."""
    unlimited = resource.getrlimit(resource.RLIMIT_AS)[1]
    for index, one in enumerate(wanted):
        name, _, inputs = one.partition(":")
        resource.setrlimit(resource.RLIMIT_AS, (unlimited, unlimited))
        prepared = _target(name).prepare(empty(folder / name))
        limit = _memory("VmSize") + megabytes * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (limit, unlimited))
        outcome = attempt(name, prepared, int(inputs), folder, seconds, index)
        print(json.dumps(asdict(outcome)), flush=True)


def _target(name: str) -> Target:
    if name in WRONG:
        return WRONG[name]
    from fuzzing.targets import TARGETS  # imports everything

    return TARGETS[name]


def attempt(
    name: str, prepared: Prepared, inputs: int, folder: Path, seconds: float, number: int
) -> Outcome:
    """Try that many inputs on one target's reader."""
    found = Outcome(name)
    for chosen in prepared.valid:
        prepared.read(chosen)
    before = _memory("VmHWM")  # everything is imported by now

    def one(number: int) -> None:
        chosen = prepared.damage(Random(number))
        whole = pickle.dumps((name, chosen))
        (folder / INPUT).write_bytes(whole)
        faulthandler.dump_traceback_later(seconds, exit=True)
        start = time.perf_counter()
        try:
            wrong = fault(prepared, chosen, found)
        finally:
            faulthandler.cancel_dump_traceback_later()
        found.inputs += 1
        taken = time.perf_counter() - start
        if taken > found.slowest:
            found.slowest, found.slowest_seed = taken, number
        found.memory = (_memory("VmHWM") - before) / 2**20
        if wrong is not None:
            kind, said = wrong
            place = folder / f"{name}-{len(found.failures)}.pickle"
            failure = found.failures.setdefault(kind, Failure(said, str(place)))
            failure.count += 1
            if len(whole) < failure.size:
                failure.size = len(whole)
                Path(failure.place).write_bytes(whole)

    _given_seeds(one, inputs, number)
    return found


def _given_seeds(test: Callable[[int], None], inputs: int, number: int) -> None:
    decorated = given(st.integers(0, 2**64))(test)
    configured = settings(
        max_examples=inputs,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    configured(seed(number)(decorated))()


def fault(prepared: Prepared, chosen: Any, found: Outcome) -> tuple[str, str] | None:
    """What is wrong with how the reader took an input: its kind and an example of what is said."""
    try:
        prepared.read(chosen)
    except NpftError as error:
        found.refused += 1
        sentence, causes = str(error), "".join(traceback.format_exception(error))
        if any(sign in causes for sign in OUT_OF_MEMORY):
            return f"out of memory before {_place(error.__cause__ or error)}", sentence
        if not sentence.isprintable():
            return "a sentence with control characters", ascii(sentence)
        if not 20 <= len(sentence) <= LONGEST:
            return "a sentence too short or too long", sentence[:300]
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        return f"{type(error).__name__} at {_place(error)}", str(error)[:300]
    else:
        found.accepted += 1
    return None


def _place(error: BaseException) -> str:
    """Where in npft it was raised, or anywhere if not there."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "/npft/" in frame.filename] or frames
    return f"{Path(own[-1].filename).name}:{own[-1].lineno}" if own else "?"


def _memory(kind: str) -> int:
    """Bytes of this process, as Linux counts them."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(kind):
            return int(line.split()[1]) * 1024
    raise OSError(f"no {kind} in /proc/self/status")


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
