"""What goes wrong is said in one sentence, and leaves nothing behind but the log it names."""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from tiny import tiny_model, tiny_tokens
from transformers import LlamaForCausalLM

from npft import models
from npft.errors import NpftError, Unavailable
from npft.grid import Grid, encode, minmax
from npft.progress import Silent
from npft_gptq import GPTQ


class AfterOneLayer(Silent):
    """Does something as soon as the worker has finished a layer."""

    def __init__(self, act: Callable[[], None]) -> None:
        self.act = act

    def track(self, items: Iterable[Any], label: str, total: int) -> Iterator[Any]:
        for item in items:
            self.act()
            yield item


class Counting(Silent):
    def __init__(self) -> None:
        self.seen: list[Any] = []
        self.total = 0

    def track(self, items: Iterable[Any], label: str, total: int) -> Iterator[Any]:
        self.total = total
        for item in items:
            self.seen.append(item)
            yield item


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where job folders are made: only a log may be there at the end, and the worker gone."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    yield tmp_path
    assert [path for path in tmp_path.iterdir() if path.suffix != ".log"] == []
    assert psutil.Process().children() == []


def kill_worker() -> None:
    for child in psutil.Process().children():
        child.kill()


def interrupt() -> None:
    raise KeyboardInterrupt


def test_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gptqmodel", None)
    with pytest.raises(Unavailable, match="gptq needs GPTQModel: run pip install"):
        GPTQ().check(tiny_model())


@pytest.mark.parametrize("bits", [5, 6, 7])
def test_widths_outside_the_format(bits: int) -> None:
    with pytest.raises(Unavailable, match=f"no {bits} bits: choose 2, 3, 4 or 8"):
        GPTQ(bits=bits).check(tiny_model())


def test_group_sizes_that_loaders_lack() -> None:
    with pytest.raises(Unavailable, match="no group_size=8: choose 16, 32"):
        GPTQ(group_size=8).check(tiny_model())


def test_shapes_that_the_format_cannot_pack() -> None:
    """16 outputs of 3 bits are 48 bits of zero points."""
    with pytest.raises(Unavailable, match=r"the 16 outputs of \S+k_proj at 3 bits"):
        GPTQ(bits=3).check(tiny_model())
    GPTQ(bits=4).check(tiny_model())


def test_a_model_of_its_own_code() -> None:
    class Mine(LlamaForCausalLM):
        pass

    model = models.wrap(Mine(tiny_model().network.config), None)
    with pytest.raises(Unavailable, match="cannot quantize a Mine, whose code is not part"):
        GPTQ().check(model)


@pytest.mark.parametrize(
    ("tokens", "told"),
    [
        ([], "was given none: give some text"),
        ([tiny_tokens(), tiny_tokens(2, 10)], "windows of 10 tokens, and GPTQModel leaves out"),
        ([tiny_tokens() + 1000], r"the token 1\d\d\d for calibration, and the model knows 256"),
    ],
)
def test_calibration_that_it_cannot_use(scratch: Path, tokens: list[Any], told: str) -> None:
    with pytest.raises(NpftError, match=told):
        GPTQ().quantize(tiny_model(), tokens)
    assert list(scratch.iterdir()) == []


def test_the_worker_is_killed(scratch: Path) -> None:
    with pytest.raises(NpftError, match="killed by signal 9") as told:
        GPTQ().quantize(tiny_model(), [tiny_tokens()], progress=AfterOneLayer(kill_worker))
    (log,) = scratch.iterdir()
    assert str(log) in str(told.value)
    assert "GPTQConfig" in log.read_text() or "Quantizing" in log.read_text()


def test_the_worker_fails(scratch: Path) -> None:
    """A model whose configuration fits no model: the reason is the log's last line."""
    model = tiny_model()
    model.network.config.intermediate_size = 48
    with pytest.raises(NpftError, match=r"stopped before it was done .*\): see its log") as told:
        GPTQ().quantize(model, [tiny_tokens()])
    (log,) = scratch.iterdir()
    last = log.read_text().strip().splitlines()[-1].strip()
    assert last[:100] in str(told.value)
    assert "\n" not in str(told.value)


def test_a_model_that_comes_out_differently(scratch: Path) -> None:
    """The worker does not quantize a model whose logits are others there."""
    model = tiny_model()
    model.network.config.rms_norm_eps = 0.5
    with pytest.raises(Unavailable, match=r"reads this model as another one, .* use rtn or kmeans"):
        GPTQ().quantize(model, [tiny_tokens()])


def test_the_user_interrupts(scratch: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        GPTQ().quantize(tiny_model(), [tiny_tokens()], progress=AfterOneLayer(interrupt))
    assert list(scratch.iterdir()) == []


def test_a_hessian_that_is_not_positive_definite_is_damped_more(scratch: Path) -> None:
    """16 tokens leave the Hessian of 32 inputs singular, and such a damping cannot mend it."""
    model, progress = tiny_model(), Counting()
    quantized = GPTQ(damp_percent=1e-9).quantize(model, [tiny_tokens(1, 16)], progress=progress)
    told = [re.fullmatch(r"(\S+) has a Hessian .* from 1e-09 to (\S+)", n) for n in quantized.notes]
    assert all(told)
    assert {match[1] for match in told if match} == set(model.layers)
    assert all(1e-9 < float(match[2]) < 1 for match in told if match)
    assert sorted(progress.seen) == list(range(progress.total)) == list(range(len(model.layers)))
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize("group_size", [0, 16])
def test_a_layer_that_cannot_be_solved_is_rounded_and_named(group_size: int) -> None:
    """Inputs of 1e20 overflow a Hessian in float32, though not the model itself."""
    model = tiny_model()
    block = model.network.model.layers[0]
    name = "model.layers.0.mlp.down_proj"
    with torch.no_grad():
        block.post_attention_layernorm.weight.mul_(1e10)
        block.mlp.down_proj.weight.mul_(1e-4)
    quantized = GPTQ(group_size=group_size).quantize(model, [tiny_tokens()])
    assert quantized.notes == (
        f"{name} could not be solved by GPTQ, as its Hessian cannot be factored, however damped: "
        "it is rounded to nearest",
    )
    weight, grid = model.layers[name].weight, Grid(4, group_size)
    nearest = encode(weight, *minmax(weight, grid), grid)
    assert torch.equal(nearest.to(torch.uint8), quantized.weights[name].codes)


def test_inputs_that_calibration_leaves_at_zero_are_named() -> None:
    model = tiny_model()
    name = "model.layers.1.mlp.down_proj"
    with torch.no_grad():
        model.network.model.layers[1].mlp.up_proj.weight[:5] = 0
    quantized = GPTQ().quantize(model, [tiny_tokens(8, 32)])
    assert quantized.notes == (
        f"{name} has 5 inputs that calibration leaves at 0: GPTQ zeroed them",
    )
    assert not quantized.weights[name].dequantize()[:, :5].any()
