"""The root quantizer: its levels, where it beats rounding to nearest and where not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from npft.artifacts import CodebookWeight, PowerWeight
from npft.packed.linear import PackedLinear
from npft.packed.tensors import from_weight
from npft.quantizers import RTN, Nonuniform
from npft.quantizers.nonuniform import POWERS
from npft.testing import check_quantizer

BITS = range(2, 9)


def normal(rows: int = 8, columns: int = 64, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def heavy() -> Tensor:
    """Normal weights with one of 25 standard deviations in every row."""
    weight = normal(16, 512)
    weight[torch.arange(16), torch.arange(16) * 7] = 25.0
    return weight


def error(quantizer: RTN | Nonuniform, weight: Tensor) -> float:
    return float((quantizer.quantize_weight(weight, None).dequantize() - weight).square().mean())


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("group_size", [0, 16])
@pytest.mark.parametrize("search", [False, True])
def test_contract(bits: int, group_size: int, search: bool) -> None:
    check_quantizer(Nonuniform(bits=bits, group_size=group_size, search=search))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("group_size", [0, 16])
@pytest.mark.parametrize("power", [1.0, 3.0, 2.5])
def test_against_numpy(bits: int, group_size: int, power: float) -> None:
    weight = normal()
    groups = weight.double().numpy().reshape(8, -1, group_size or 64)
    roots = np.sign(groups) * np.abs(groups) ** (1 / power)
    low, high = np.minimum(roots.min(2), 0), np.maximum(roots.max(2), 0)
    scale = ((high - low) / (2**bits - 1))[..., None]
    zero = np.round(-low[..., None] / scale)
    rounded = (np.clip(np.round(roots / scale) + zero, 0, 2**bits - 1) - zero) * scale
    expected = np.sign(rounded) * np.abs(rounded) ** power
    quantizer = Nonuniform(bits=bits, group_size=group_size, power=power)
    found = quantizer.quantize_weight(weight, None).dequantize().numpy().reshape(groups.shape)
    # Half precision of the scale, raised to the power, and of the levels.
    np.testing.assert_allclose(found, expected, rtol=(power + 1) * 2**-11, atol=1e-6)


@pytest.mark.parametrize("group_size", [0, 16])
def test_power_1_is_round_to_nearest(group_size: int) -> None:
    one = Nonuniform(bits=4, power=1, group_size=group_size).quantize_weight(normal(), None)
    rtn = RTN(bits=4, group_size=group_size).quantize_weight(normal(), None)
    assert torch.equal(one.codes, rtn.codes)
    assert torch.allclose(one.dequantize(), rtn.dequantize(), rtol=2**-11)


@pytest.mark.parametrize("group_size", [0, 16])
def test_search_is_no_worse_than_any_power_in_any_row(group_size: int) -> None:
    weight = torch.cat([normal(), normal() ** 3])

    def rows(**options: object) -> Tensor:
        quantizer = Nonuniform(bits=4, group_size=group_size, **options)
        return (quantizer.quantize_weight(weight, None).dequantize() - weight).square().sum(1)

    best = rows(search=True)
    for power in POWERS:
        # Levels of a codebook are rounded once more than what the search compares.
        assert bool((best <= rows(power=power) * 1.002).all())


def test_each_group_has_a_power_of_its_own() -> None:
    weight = torch.cat([normal(columns=32), normal(columns=32) ** 5], dim=1)
    found = Nonuniform(bits=4, group_size=32, search=True).quantize_weight(weight, None)
    assert isinstance(found, PowerWeight)
    flat, peaked = found.power[:, 0].float().mean(), found.power[:, 1].float().mean()
    assert flat + 0.3 < peaked


def test_beats_rounding_on_outliers_and_loses_without() -> None:
    assert error(Nonuniform(bits=4), heavy()) < 0.2 * error(RTN(bits=4), heavy())
    assert error(Nonuniform(bits=4), normal(16, 512)) > 1.2 * error(RTN(bits=4), normal(16, 512))


def test_large_weights_bear_the_large_errors() -> None:
    weight = normal(16, 512)
    off = (Nonuniform(bits=4).quantize_weight(weight, None).dequantize() - weight).abs()
    large = weight.abs() > weight.abs().median()
    assert off[large].mean() > 2 * off[~large].mean()


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_packed_layers_run_it(bits: int) -> None:
    weight = normal(24, 40)
    packed = Nonuniform(bits=bits).quantize_weight(weight, None)
    assert isinstance(packed, CodebookWeight)
    layer, inputs = PackedLinear(from_weight(packed)), normal(3, 40, seed=1)
    assert torch.allclose(layer(inputs), inputs @ packed.dequantize().T, atol=1e-4)


def test_bits_as_stored() -> None:
    codes = 8 * 64 * 4
    assert Nonuniform(bits=4).quantize_weight(normal(), None).storage_bits == codes + 8 * 16 * 16
    grouped = Nonuniform(bits=4, group_size=16).quantize_weight(normal(), None)
    assert grouped.storage_bits == codes + 8 * 4 * (16 + 4 + 16)


@pytest.mark.parametrize("group_size", [0, 16])
def test_zeros_stay_zeros_at_any_width(group_size: int) -> None:
    weight = torch.cat([torch.zeros(1, 32), normal(1, 32)])
    for bits in BITS:
        packed = Nonuniform(bits=bits, group_size=group_size).quantize_weight(weight, None)
        assert not packed.dequantize()[0].any()


def test_labels_tell_the_settings_apart() -> None:
    assert Nonuniform(bits=4).label == "nonuniform-4"
    assert Nonuniform(bits=4, power=2.5, group_size=64).label == "nonuniform-4-g64-p2.5"
    assert Nonuniform(bits=3, search=True).label == "nonuniform-3-search"
