"""Every plugin that is installed keeps what its contract promises, as it comes."""

from __future__ import annotations

import pytest

from npft.plugins import Entry, discover
from npft.testing import check_plugin

ENTRIES = sorted(discover(), key=lambda entry: (entry.kind, entry.name))


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: f"{entry.kind}-{entry.name}")
def test_contract(entry: Entry) -> None:
    check_plugin(entry.cls())
