"""Where GPTQModel's solver gives up, its layer is rounded to nearest and named."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from npft.grid import Grid, encode, minmax
from npft_gptq.process import WORKER


@pytest.mark.parametrize(
    ("case", "why"),
    [
        ("solved", None),
        ("few", "too few calibration tokens reach it"),
        ("unreached", "too few calibration tokens reach it"),
        ("nan", "its loss is NaN"),
    ],
)
def test_one_layer(case: str, why: str | None, tmp_path: Path) -> None:
    script = Path(__file__).with_name("one_layer.py")
    subprocess.run([sys.executable, script, WORKER, case, tmp_path], check=True)
    *notes, last = json.loads((tmp_path / "said.json").read_text())
    assert last == {"layer": 0}
    codes = load_file(tmp_path / "0.safetensors")["codes"]
    weight, grid = load_file(tmp_path / "weight.safetensors")["weight"], Grid(4)
    nearest = encode(weight, *minmax(weight, grid), grid).to(torch.uint8)
    if why is None:
        assert notes == []
        assert not torch.equal(codes, nearest)
    else:
        sentence = f"block.linear could not be solved by GPTQ, as {why}: it is rounded to nearest"
        assert notes == [{"note": sentence}]
        assert torch.equal(codes, nearest)
