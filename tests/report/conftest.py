"""A real run to report on."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import save_tiny

from npft import config, pipeline
from npft.plugins import discover
from npft.report.reading import BENCH, Bench, Latency

BENCHED = Bench(
    rows=[
        Latency(what=what, variant=variant, tokens=n, milliseconds=n**0.5, floor_ms=1.0)
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
    (root / "run" / BENCH).write_text(BENCHED.model_dump_json())
    return root / "run"
