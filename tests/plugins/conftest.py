"""Packages for the length of a test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from packages import Install, installing


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Put a distribution on the path."""
    monkeypatch.syspath_prepend(str(tmp_path))
    with installing(tmp_path) as install:
        yield install
