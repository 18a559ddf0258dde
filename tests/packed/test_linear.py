"""Packed layers on the CPU against float64 products through the contract's dequantization."""

from __future__ import annotations

import copy

import pytest
import torch
from packed_samples import codebook_weight, exact_product, relative_error, uniform_weight

from npft.artifacts import PackedWeight
from npft.errors import NpftError
from npft.packed import cpu, reference
from npft.packed.linear import PackedLinear, Part, share
from npft.packed.tensors import from_weight

WEIGHTS: dict[str, PackedWeight] = {
    "codebook 4": codebook_weight(4, 70, 300, sparse=0.02),
    "codebook 3": codebook_weight(3, 31, 513),
    "codebook 2": codebook_weight(2, 32, 128),
    "uniform 4": uniform_weight(4, 40, 301, sparse=0.02),
    "uniform 3, groups": uniform_weight(3, 40, 320, 64),
    "uniform 8": uniform_weight(8, 40, 300),
    "uniform 6": uniform_weight(6, 40, 300),
    "uniform 4, odd groups": uniform_weight(4, 40, 300, 75),
    "uniform 4, act-order": uniform_weight(4, 40, 256, 32, shuffled=True, sparse=0.02),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_reference_is_the_contract(name: str) -> None:
    weight = WEIGHTS[name]
    packed = from_weight(weight)
    order = packed.permutation if packed.permutation is not None else slice(None)
    assert torch.equal(reference.dense(packed), weight.dequantize()[:, order])


@pytest.mark.parametrize("vectors", [1, 3, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", WEIGHTS)
def test_layer(name: str, dtype: torch.dtype, vectors: int) -> None:
    weight = WEIGHTS[name]
    rows, columns = weight.shape
    x, bias = torch.randn(2, vectors, columns).to(dtype), torch.randn(rows).to(dtype)
    y = PackedLinear(from_weight(weight), bias)(x)
    assert y.shape == (2, vectors, rows)
    assert y.dtype == dtype
    exact = exact_product(weight, x) + bias.double()
    bound = 1e-6 if dtype == torch.float32 else 2**-7  # bf16 weights and a bf16 result
    assert relative_error(y, exact) < bound


@pytest.mark.parametrize("name", WEIGHTS)
def test_cpu_kernel(name: str) -> None:
    pytest.importorskip("numba")
    weight = WEIGHTS[name]
    packed = from_weight(weight)
    if not cpu.available(packed):
        assert packed.bits > 4 or packed.group_size % 2
        return
    order = packed.permutation if packed.permutation is not None else slice(None)
    x = torch.randn(3, weight.shape[1])
    y = cpu.multiply(cpu.rows_of(packed), x[:, order])
    assert relative_error(y, exact_product(weight, x)) < 1e-6


def test_casts_leave_the_packed_weights_alone() -> None:
    layer = PackedLinear(from_weight(codebook_weight(4, 40, 300)), torch.randn(40))
    x = torch.randn(1, 300)
    before = layer(x)
    layer.double().bfloat16()
    assert layer.weight.table.dtype == torch.float16
    assert layer.bias.dtype == torch.bfloat16
    assert relative_error(layer.float()(x), before) < 2**-8
    again = PackedLinear(from_weight(codebook_weight(4, 40, 300, seed=1)), torch.randn(40))
    again.load_state_dict(layer.state_dict())
    assert torch.equal(again(x), layer(x))


def shared_layers(**kinds: PackedWeight) -> tuple[list[PackedLinear], list[torch.nn.Module]]:
    layers = [PackedLinear(from_weight(weight)) for weight in kinds.values()]
    return layers, share(copy.deepcopy(layers))


@pytest.mark.parametrize("sparse", [0.0, 0.02])
def test_layers_of_one_input_are_one_product(sparse: float) -> None:
    kinds = {
        "q": codebook_weight(4, 70, 300, sparse=sparse),
        "k": codebook_weight(4, 33, 300, sparse=sparse, seed=1),
        "v": codebook_weight(4, 64, 300, sparse=sparse, seed=2),
    }
    layers, together = shared_layers(**kinds)
    assert all(isinstance(part, Part) for part in together)
    whole = together[0].shared
    seen, product = [], whole.product
    whole.product = lambda x: seen.append(x) or product(x)
    for _ in range(2):
        x = torch.randn(1, 5, 300)
        for one, part in zip(layers, together, strict=True):
            assert relative_error(part(x), one(x)) < 1e-6  # the order of the sums differs
    assert len(seen) == 2


def test_uniform_layers_share_too() -> None:
    layers, together = shared_layers(
        gate=uniform_weight(4, 40, 320, 64), up=uniform_weight(4, 50, 320, 64, seed=1)
    )
    x = torch.randn(3, 320)
    for one, part in zip(layers, together, strict=True):
        torch.testing.assert_close(part(x), one(x))


def test_a_changed_input_is_seen() -> None:
    layers, together = shared_layers(
        a=codebook_weight(4, 40, 300), b=codebook_weight(4, 40, 300, seed=1)
    )
    x = torch.randn(2, 300)
    together[0](x)
    x.mul_(2)
    torch.testing.assert_close(together[1](x), layers[1](x))
    torch.testing.assert_close(together[1](x), layers[1](x))


def test_layers_of_different_kinds_stay_apart() -> None:
    layers, together = shared_layers(a=codebook_weight(4, 40, 300), b=codebook_weight(3, 40, 300))
    assert [type(layer) for layer in together] == [PackedLinear] * 2
    assert len(layers) == 2


def test_refusals() -> None:
    with pytest.raises(NpftError, match="codebooks of 5 bits have no packed kernels"):
        from_weight(codebook_weight(5, 8, 64))
    with pytest.raises(NpftError, match="over 70000 inputs"):
        from_weight(codebook_weight(4, 1, 70000, sparse=0.001))
