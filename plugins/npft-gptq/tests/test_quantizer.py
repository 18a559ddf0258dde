"""The contract, and that the library stays in its process."""

from __future__ import annotations

import importlib.util
import os
import random
import sys

import pytest
import torch
from tiny import tiny_model, tiny_tokens

from npft import adapters, plugins
from npft.testing import check_quantizer
from npft_gptq import GPTQ

VARIANTS = [
    GPTQ(bits=4),
    GPTQ(bits=3, group_size=16, sym=True, desc_act=True),
]


@pytest.mark.parametrize("quantizer", VARIANTS, ids=lambda q: str(q.bits))
def test_contract(quantizer: GPTQ) -> None:
    check_quantizer(quantizer)


def test_it_is_found_by_name() -> None:
    assert plugins.discover().find("quantizer", "gptq").cls is GPTQ


def test_tuning_leaves_the_library_alone() -> None:
    """peft would import it, to look for its layers."""
    model = tiny_model()
    layers = list(model.layers)
    with adapters.attached(model, layers, rank=2, alpha=2, dropout=0.0, seed=0) as (wrapped, _):
        wrapped(input_ids=tiny_tokens()).logits.sum().backward()
        adapter = adapters.extract(wrapped, [])
    adapters.merge(model, adapter)
    assert "gptqmodel" not in sys.modules
    assert importlib.util.find_spec("gptqmodel") is not None


def test_nothing_of_the_library_leaks(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """GPTQModel prints a banner, patches libraries, and seeds the global generators.

    It also fails where its pool has one thread, as it has on two cores.
    """
    monkeypatch.setenv("GPTQMODEL_CPU_WORKERS", "1")
    model, tokens = tiny_model(), tiny_tokens()
    variables, modules = dict(os.environ), set(sys.modules)
    states = torch.get_rng_state(), random.getstate()
    capfd.readouterr()
    quantized = GPTQ().quantize(model, [tokens])
    assert capfd.readouterr() == ("", "")
    assert quantized.model.tokenizer is model.tokenizer
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert dict(os.environ) == variables
    loaded = {name.partition(".")[0] for name in set(sys.modules) - modules}
    assert not loaded & {"gptqmodel", "device_smi", "logbar", "tokenicer"}
