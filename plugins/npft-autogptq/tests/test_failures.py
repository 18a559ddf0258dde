"""What goes wrong is said in one sentence, and leaves nothing behind."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from tiny import tiny_model, tiny_tokens

from npft.errors import NpftError, Unavailable
from npft.progress import Silent
from npft_autogptq import AutoGPTQ


class AfterOneLayer(Silent):
    """Does something as soon as the worker has finished a layer."""

    def __init__(self, act: Callable[[], None]) -> None:
        self.act = act

    def track(self, items: Iterable[Any], label: str, total: int) -> Iterator[Any]:
        for item in items:
            self.act()
            yield item


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where job folders are made: it must be empty, and the worker gone, at the end."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    yield tmp_path
    assert list(tmp_path.iterdir()) == []
    assert psutil.Process().children() == []


def kill_worker() -> None:
    for child in psutil.Process().children():
        child.kill()


def interrupt() -> None:
    raise KeyboardInterrupt


def test_no_environment(tmp_path: Path) -> None:
    missing = str(tmp_path / "none")
    with pytest.raises(Unavailable, match=r"has none: make it with `python -m npft_autogptq") as no:
        AutoGPTQ(environment=missing).check(tiny_model())
    assert f"--path {missing}" in str(no.value)


def test_an_environment_without_autogptq() -> None:
    with pytest.raises(Unavailable, match="No module named 'auto_gptq'.*make it anew with"):
        AutoGPTQ(environment=sys.prefix).check(tiny_model())


@pytest.mark.parametrize("bits", [5, 6, 7])
def test_widths_that_autogptq_lacks(bits: int) -> None:
    with pytest.raises(Unavailable, match=f"no {bits} bits: choose 2, 3, 4 or 8"):
        AutoGPTQ(bits=bits).check(tiny_model())


def test_no_calibration(scratch: Path) -> None:
    with pytest.raises(NpftError, match="was given none"):
        AutoGPTQ().quantize(tiny_model(), [])


def test_the_worker_is_killed(scratch: Path) -> None:
    with pytest.raises(NpftError, match="killed by signal 9"):
        AutoGPTQ().quantize(tiny_model(), [tiny_tokens()], progress=AfterOneLayer(kill_worker))


def test_the_user_interrupts(scratch: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        AutoGPTQ().quantize(tiny_model(), [tiny_tokens()], progress=AfterOneLayer(interrupt))


def test_the_worker_fails(scratch: Path) -> None:
    beyond = tiny_tokens() + 1000
    with pytest.raises(NpftError, match="stopped before it was done .IndexError") as failed:
        AutoGPTQ().quantize(tiny_model(), [tiny_tokens(), beyond])
    assert "Traceback" in failed.value.__notes__[0]


def test_a_hessian_that_is_not_positive_definite_is_damped_more() -> None:
    """16 tokens leave the Hessian of 32 inputs singular, and such a damping cannot mend it."""
    model = tiny_model()
    quantized = AutoGPTQ(damp_percent=1e-9).quantize(model, [tiny_tokens(1, 16)])
    damped = {note.split()[0] for note in quantized.notes}
    assert damped <= set(model.layers)
    assert "model.layers.0.self_attn.q_proj" in damped
    assert all("its damping was raised from 1e-09 to 1e-0" in note for note in quantized.notes)


def test_a_layer_that_cannot_be_solved_is_rounded_and_named() -> None:
    """Inputs of 1e20 overflow a Hessian in float32, though not the model itself."""
    model = tiny_model()
    mlp = model.network.model.layers[0]
    name = "model.layers.0.mlp.down_proj"
    with torch.no_grad():
        mlp.post_attention_layernorm.weight.mul_(1e10)
        mlp.mlp.down_proj.weight.mul_(1e-4)
    quantized = AutoGPTQ(sym=False).quantize(model, [tiny_tokens()])
    (note,) = quantized.notes
    assert note.startswith(f"{name} could not be solved by GPTQ, as its Hessian overflows")
    packed = quantized.weights[name]
    nearest = (model.layers[name].weight / packed.scale.float()).round() + packed.zero
    assert torch.equal(nearest.clamp(0, 15).to(torch.uint8), packed.codes)


def test_inputs_that_calibration_leaves_at_zero_are_named() -> None:
    model = tiny_model()
    name = "model.layers.1.mlp.down_proj"
    with torch.no_grad():
        model.network.model.layers[1].mlp.up_proj.weight[:5] = 0
    quantized = AutoGPTQ().quantize(model, [tiny_tokens(8, 32)])
    assert quantized.notes == (
        f"{name} has 5 inputs that calibration leaves at 0: GPTQ zeroed them",
    )
    assert not quantized.weights[name].dequantize()[:, :5].any()
