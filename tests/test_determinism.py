"""Same seed, same machine, same result; and nobody else's random numbers are touched."""

from __future__ import annotations

import json
import random
import threading
from pathlib import Path

import numpy as np
import torch
from test_resume import SETTINGS, bits, numbers
from tiny import save_tiny

from npft import config, pipeline, seeding
from npft.plugins import discover


def run(model: Path, output: Path, **changes: object) -> None:
    tuning = {**SETTINGS["tuning"], "dropout": 0.2, "rescore": True}
    values = {**SETTINGS, "model": str(model), "output": str(output), "tuning": tuning, **changes}
    pipeline.run(config.make(values), discover())


def test_two_runs_have_the_same_bits(tmp_path) -> None:
    """In another thread, with other global states, a little later."""
    model = save_tiny(tmp_path / "model")
    run(model, tmp_path / "a")
    torch.manual_seed(5)
    np.random.seed(5)
    random.seed(5)
    thread = threading.Thread(target=run, args=(model, tmp_path / "b"))
    thread.start()
    thread.join()
    run(model, tmp_path / "c", seed=1)
    assert numbers(tmp_path / "a") == numbers(tmp_path / "b")
    assert bits(tmp_path / "a") == bits(tmp_path / "b")
    assert numbers(tmp_path / "a")["rows"] != numbers(tmp_path / "c")["rows"]
    adapters = [
        json.loads((tmp_path / n / "adapter/adapter_config.json").read_text()) for n in "ab"
    ]
    assert adapters[0] == adapters[1]


def test_global_random_states_are_as_before(tmp_path) -> None:
    model = save_tiny(tmp_path / "model")
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    states = torch.get_rng_state(), random.getstate(), repr(np.random.get_state())
    run(model, tmp_path / "r")
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert repr(np.random.get_state()) == states[2]


def test_the_wish_for_repeatable_algorithms_ends_with_its_scope() -> None:
    assert not torch.are_deterministic_algorithms_enabled()
    with seeding.deterministic(True):
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
        with seeding.deterministic(False):
            assert torch.are_deterministic_algorithms_enabled()
    assert not torch.are_deterministic_algorithms_enabled()
