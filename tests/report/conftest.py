"""A real run to report on."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import save_tiny

from npft import config, folder, pipeline, steps
from npft.bench.measure import Line
from npft.bench.result import Result
from npft.plugins import discover

BENCHED = Result(
    "run",
    3e12,
    [
        Line(what, variant, n, n**0.5, n**0.5, n**0.5, 1e9, 1.0, 2.0)
        for what in ("linear", "decode")
        for variant in ("bfloat16", "kmeans-4")
        for n in (128, 256)
    ],
    environment={"gpu": "Some GPU"},
)


@pytest.fixture(scope="session")
def run(tmp_path_factory) -> Path:
    """A run of a tiny model, with results of a bench beside it."""
    root = tmp_path_factory.mktemp("report")
    settings = config.make(
        {
            "model": str(save_tiny(root / "tiny")),
            "output": str(root / "run"),
            "samples": 4,
            "context": 32,
            "eval_samples": 2,
            "tuning": {"epochs": 2, "rank": 4},
        }
    )
    pipeline.run(settings, discover())
    with folder.opened(root / "run") as kept:
        steps.keep_bench(kept, BENCHED)
    return root / "run"
