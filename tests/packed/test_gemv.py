"""The GPU kernels of packed products: emulated on the CPU, and on a GPU if there is one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import emulated
import pytest
import torch
from packed_samples import codebook_weight, exact_product, relative_error, uniform_weight

from npft.artifacts import PackedWeight
from npft.packed import gemv, nvrtc
from npft.packed.gemv import Shape
from npft.packed.tensors import from_weight

ROUNDING = {torch.bfloat16: 2**-8, torch.float16: 2**-11}
"""Half a unit in the last place of each result, relative, is at most this."""

Make = Callable[[int, int, int], PackedWeight]

WEIGHTS: dict[str, PackedWeight] = {
    "codebook, 4 bits": codebook_weight(4, 40, 300),
    "codebook, 3 bits": codebook_weight(3, 64, 700),
    "codebook, 2 bits": codebook_weight(2, 33, 513),
    "codebook, 4 bits, sparse": codebook_weight(4, 40, 1500, sparse=0.06),
    "uniform, 4 bits": uniform_weight(4, 40, 300),
    "uniform, 3 bits": uniform_weight(3, 40, 1100),
    "uniform, 2 bits": uniform_weight(2, 40, 300),
    "uniform, 8 bits": uniform_weight(8, 40, 300),
    "uniform, 5 bits": uniform_weight(5, 31, 129),
    "uniform, 4 bits, groups of 32": uniform_weight(4, 40, 320, 32),
    "uniform, 3 bits, groups of 64": uniform_weight(3, 40, 320, 64),
    "uniform, 4 bits, groups of 128": uniform_weight(4, 40, 512, 128),
    "uniform, 4 bits, groups of 256, sparse": uniform_weight(4, 40, 768, 256, sparse=0.02),
}


@pytest.fixture
def emulation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvrtc, "kernel", emulated.kernel)


def check(
    weight: PackedWeight, batch: int, dtype: torch.dtype, shape: Shape, device: str = "cpu"
) -> None:
    random = torch.Generator().manual_seed(batch)
    rows, columns = weight.shape
    magnitude = 30 if dtype == torch.bfloat16 else 1  # fp16 has no place for much more
    x = (magnitude * torch.randn(batch, columns, generator=random)).to(dtype)
    bias = torch.randn(rows, generator=random).to(dtype)
    y = torch.full((batch, rows), float("nan"), dtype=dtype, device=device)
    packed = from_weight(weight).map(lambda tensor: tensor.to(device))
    gemv.multiply(packed, x.to(device), y, bias.to(device), shape)
    exact = exact_product(weight, x) + bias.double()
    assert relative_error(y.cpu(), exact) < ROUNDING[dtype]


@emulated.needs_compiler
@pytest.mark.parametrize("name", WEIGHTS)
def test_one_vector(emulation: None, name: str) -> None:
    check(WEIGHTS[name], 1, torch.bfloat16, Shape(8, 2))


@emulated.needs_compiler
@pytest.mark.parametrize(("batch", "shape"), [(2, (4, 1)), (3, (4, 2)), (7, (8, 1)), (16, (4, 1))])
@pytest.mark.parametrize("name", ["codebook, 4 bits, sparse", "uniform, 3 bits, groups of 64"])
def test_many_vectors(emulation: None, name: str, batch: int, shape: tuple[int, int]) -> None:
    check(WEIGHTS[name], batch, torch.float16, Shape(*shape))


@emulated.needs_compiler
@pytest.mark.parametrize("name", ["codebook, 4 bits, sparse", "uniform, 3 bits"])
def test_many_warps(emulation: None, name: str) -> None:
    check(WEIGHTS[name], 1, torch.bfloat16, Shape(16, 2))


@emulated.needs_compiler
@pytest.mark.parametrize("make", [codebook_weight, uniform_weight])
@pytest.mark.parametrize("magnitude", [0.0, 1e-38, 1e-20, 1e30])
def test_any_magnitude_of_bf16(emulation: None, magnitude: float, make: Make) -> None:
    """fp16 alone has no place for these; a power of two per slice of x makes one."""
    weight = make(4, 32, 256)
    x = (magnitude * torch.randn(1, 256)).bfloat16()
    y = torch.full((1, 32), float("nan"), dtype=torch.bfloat16)
    gemv.multiply(from_weight(weight), x, y, None, Shape(4, 1))
    exact = exact_product(weight, x)
    assert (y.double() - exact).norm() <= 2**-8 * exact.norm()


@emulated.needs_compiler
@pytest.mark.parametrize("group", [0, 128])
def test_zero_points_go_off_exactly(emulation: None, group: int) -> None:
    """Codes equal to their zero point are zeros, however large x."""
    weight = uniform_weight(4, 40, 512, group)
    codes = weight.zero.repeat_interleave(512 // weight.zero.shape[1], 1)
    x = torch.full((1, 512), 1000.0).bfloat16()
    y = torch.full((1, 40), float("nan"), dtype=torch.bfloat16)
    gemv.multiply(from_weight(replace(weight, codes=codes)), x, y, None, Shape(4, 1))
    assert torch.equal(y, torch.zeros_like(y))


@emulated.needs_compiler
@pytest.mark.parametrize("make", [codebook_weight, uniform_weight])
def test_infinity_and_nan_are_not_hidden(emulation: None, make: Make) -> None:
    weight = make(4, 32, 256)
    for value in (float("inf"), float("nan")):
        x, y = torch.ones(1, 256).bfloat16(), torch.zeros(1, 32).bfloat16()
        x[0, 100] = value
        gemv.multiply(from_weight(weight), x, y, None, Shape(4, 1))
        assert not y.isfinite().any()


@emulated.needs_compiler
@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("name", WEIGHTS)
def test_dequantize(emulation: None, name: str, dtype: torch.dtype) -> None:
    weight = WEIGHTS[name]
    found = gemv.dequantize(from_weight(weight), dtype)
    assert torch.equal(found, weight.dequantize_dense().to(dtype))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(
    ("batch", "dtype"), [(1, torch.bfloat16), (4, torch.float16), (16, torch.bfloat16)]
)
@pytest.mark.parametrize("name", WEIGHTS)
def test_on_a_gpu(name: str, batch: int, dtype: torch.dtype) -> None:
    check(WEIGHTS[name], batch, dtype, Shape(8, 2), "cuda")
    dequantized = gemv.dequantize(from_weight(WEIGHTS[name]).map(lambda t: t.cuda()), dtype)
    assert torch.equal(dequantized.cpu(), WEIGHTS[name].dequantize_dense().to(dtype))
