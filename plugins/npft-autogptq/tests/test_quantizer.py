"""The contract, the saved folder, and what the user reads."""

from __future__ import annotations

import pytest

from npft import plugins
from npft.testing import check_quantizer
from npft_autogptq import AutoGPTQ

VARIANTS = [
    AutoGPTQ(bits=4),
    AutoGPTQ(bits=3, group_size=16, sym=False, desc_act=True),
]


@pytest.mark.parametrize("quantizer", VARIANTS, ids=lambda q: str(q.bits))
def test_contract(quantizer: AutoGPTQ) -> None:
    check_quantizer(quantizer)


def test_it_is_found_by_name() -> None:
    assert plugins.discover().find("quantizer", "autogptq").cls is AutoGPTQ
