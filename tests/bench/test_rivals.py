"""Other libraries' products: what is told where they cannot run, and that they are right."""

from __future__ import annotations

import importlib
import math
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from npft.bench.rivals import gptqmodel, pytorch, rival
from npft.bench.rivals.apart import NOT_INSTALLED, measured
from npft.bench.rivals.every import RIVALS
from npft.bench.rivals.rival import Matrix, Rival
from npft.bench.shapes import shape_named
from npft.errors import NpftError

WITHOUT_GPU = not torch.cuda.is_available()
FLUTE = RIVALS["FLUTE 4-bit, groups of 128"]
HERE = "installed, but its kernel cannot be used here: "

BROKEN = {
    "raise ImportError('lib_x.so:\\n  undefined symbol')": "lib_x.so: undefined symbol",
    "import sys; sys.exit('no CUDA\\x1b[31m')": "no CUDA\\x1b[31m",
    "import os; os.write(2, b'first\\nlast\\n'); os._exit(7)": (
        "its process ended with status 7: last"
    ),
    "import os; os.kill(os.getpid(), 9)": "its process ended with status -9",
}
"""Code of a library to what is told of it."""


def told(one: Rival) -> str:
    found = measured(one, "tiny", 3e12, 2)
    assert isinstance(found, str)
    return found


@pytest.mark.parametrize("one", RIVALS.values(), ids=lambda one: one.name)
def test_missing_ones_are_told_as_missing(one: Rival) -> None:
    if find_spec(one.module) is not None:
        pytest.skip(f"{one.module} is installed")
    assert told(one) == NOT_INSTALLED


def broken(code: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FLUTE as a library of that code."""
    package = folder / "flute"
    package.mkdir()
    (package / "__init__.py").write_text(f"print('a banner')\n{code}\n")
    monkeypatch.syspath_prepend(folder)
    importlib.invalidate_caches()


@pytest.mark.parametrize("code", BROKEN)
def test_a_broken_one_is_told_in_its_own_words_and_stops_nothing(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    broken(code, tmp_path, monkeypatch)
    assert told(FLUTE) == HERE + BROKEN[code]
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(not WITHOUT_GPU, reason="there is a GPU")
def test_an_installed_one_without_a_gpu() -> None:
    assert told(pytorch.INT4).startswith(HERE)
    assert "CUDA" in told(pytorch.INT4)


@pytest.mark.skipif(not WITHOUT_GPU, reason="there is a GPU")
@pytest.mark.parametrize("one", [gptqmodel.MARLIN, gptqmodel.TRITON], ids=lambda one: one.name)
def test_gptqmodel_without_a_gpu(one: Rival) -> None:
    pytest.importorskip("gptqmodel")
    assert told(one).startswith(HERE)
    assert "CUDA" in told(one)


def test_bytes_of_gptqmodel_are_those_of_its_buffers() -> None:
    pytest.importorskip("gptqmodel")
    rows, columns = 256, 512
    layer = gptqmodel.triton_layer(rows, columns, "cpu")
    size = layer.qweight.nbytes + layer.qzeros.nbytes + layer.scales.nbytes
    assert gptqmodel.TRITON.bytes_per_weight * rows * columns == size
    size -= layer.qzeros.nbytes  # Marlin's format has none
    assert gptqmodel.MARLIN.bytes_per_weight * rows * columns == size


def test_dense_weights_are_those_that_gptqmodel_dequantizes() -> None:
    pytest.importorskip("gptqmodel")
    layer = gptqmodel.triton_layer(64, 256, "cpu")
    mine = gptqmodel.filled(layer).dense()
    theirs = layer.dequantize_weight().T.float()
    assert mine.shape == (64, 256)
    torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-6)  # theirs are float16
    assert mine.std() * math.sqrt(256) == pytest.approx(0.6, abs=0.1)


def test_dense_weights_by_hand() -> None:
    weight = torch.zeros(16, 2, dtype=torch.int32)  # 128 inputs, 2 outputs
    weight[0, 0], weight[15, 1] = 0x21, -(2**31)  # codes 1 and 2; the last one 8
    matrix = gptqmodel.dense(weight, torch.tensor([[1.0, 0.5]]))
    assert matrix[0, :3].tolist() == [-7.0, -6.0, -8.0]
    assert matrix[1, -2:].tolist() == [-4.0, 0.0]


@pytest.mark.parametrize("one", RIVALS.values(), ids=lambda one: one.name)
def test_bytes_of_a_model(one: Rival) -> None:
    """More than the codes alone, and less than a bit more: scales, zeros and tables."""
    bits = 3 if "3-bit" in one.name else 4
    shape = shape_named("llama-2-7b")
    codes = 32 * (4 * 4096**2 + 3 * 4096 * 11008) * bits / 8
    assert codes < one.size(shape) < codes * (bits + 0.3) / bits


def test_names_tell_rivals_apart() -> None:
    assert all(name == one.name for name, one in RIVALS.items())
    assert len(RIVALS) == 7


needs_gpu = pytest.mark.skipif(WITHOUT_GPU, reason="needs a GPU")


@needs_gpu
@pytest.mark.parametrize("one", [pytorch.CUBLAS, *RIVALS.values()], ids=lambda one: one.name)
def test_products_are_those_of_the_dequantized_weights(one: Rival) -> None:
    if not one.installed:
        pytest.skip(f"{one.module} is not installed")
    assert rival.error(one, 4096, 1024) <= rival.MOST_WRONG


@needs_gpu
@pytest.mark.parametrize("wrong", ["nothing", "other", "late"])
def test_wrong_products_are_refused(wrong: str) -> None:
    """One that computes nothing, one of other weights, one that a graph does not capture."""
    weight = torch.randn(64, 32, device="cuda") / 6

    def make(rows: int, columns: int) -> Matrix:
        first: list[torch.Tensor] = []

        def multiply(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            if wrong == "nothing":
                return torch.zeros_like(y)
            if wrong == "other":
                return x @ weight.flip(0).T
            if not first:
                first.append(x @ weight.T)
            return first[0]

        return Matrix(multiply, lambda: weight)

    with pytest.raises(NpftError, match="64 x 32 weights differs by"):
        rival.check(Rival("x", "torch", 4.0, make, dtype=torch.float32), 64, 32)
