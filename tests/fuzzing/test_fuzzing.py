"""A few hundred damaged inputs for every kind of file; ``benchmarks/fuzz.py`` tries 10,000."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
from fuzzing import running
from fuzzing.outcome import Outcome
from fuzzing.targets import TARGETS
from fuzzing.wrong import WRONG


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    folder = tmp_path_factory.mktemp("fuzzing")
    wanted = {name: target.short for name, target in TARGETS.items()}
    return {outcome.target: outcome for outcome in running.run(folder, wanted)}


@pytest.mark.parametrize("name", TARGETS)
def test_damaged_input_is_taken_or_refused_in_a_sentence(name: str, outcomes) -> None:
    found = outcomes[name]
    assert not found.failures
    assert found.inputs == found.refused + found.accepted >= TARGETS[name].short
    assert found.refused > found.inputs // 5


@pytest.mark.parametrize(
    ("name", "noticed"),
    [
        ("hangs", "the process ended with 1"),
        ("dies", "the process ended with -11"),
        ("grows", "MemoryError"),
        ("grows politely", "out of memory"),
        ("shows a traceback", "KeyError at wrong.py"),
        ("stammers", "control characters"),
    ],
)
def test_whatever_a_reader_does_wrong_is_noticed(name, noticed, faults) -> None:
    (kind,) = faults[name].failures
    assert noticed in kind
    assert Path(faults[name].failures[kind].place).is_file()


@pytest.fixture(scope="module")
def faults(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    folder = tmp_path_factory.mktemp("faults")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running, "SECONDS", 3.0)
        return {found.target: found for found in running.run(folder, dict.fromkeys(WRONG, 3))}


def test_inputs_are_made_from_their_seed_alone(tmp_path: Path) -> None:
    prepared = TARGETS["npft"].prepare(tmp_path)
    assert prepared.damage(Random(3)) == prepared.damage(Random(3)) != prepared.damage(Random(4))
