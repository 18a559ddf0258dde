"""SqueezeLLM's clustering as a quantizer; the clustering itself is tested in test_kmeans_1d."""

from __future__ import annotations

import pytest
import torch
from tiny import tiny_model
from torch import Tensor

from npft.artifacts import CodebookWeight
from npft.errors import NpftError
from npft.quantizers import RTN, KMeans
from npft.testing import check_quantizer

BITS = range(2, 9)


def normal(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def quantize(weight: Tensor, bits: int, sensitivity: Tensor | None = None) -> CodebookWeight:
    packed = KMeans(bits=bits).quantize_weight(weight, sensitivity)
    assert isinstance(packed, CodebookWeight)
    return packed


def squared_errors(weight: Tensor, stands_for: Tensor) -> Tensor:
    return (weight - stands_for).double().square()


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_contract(bits: int) -> None:
    check_quantizer(KMeans(bits=bits))


@pytest.mark.parametrize("bits", BITS)
def test_with_equal_weights_no_row_is_worse_than_rounding(bits: int) -> None:
    weight = normal(16, 512)
    mine = squared_errors(weight, quantize(weight, bits).dequantize()).sum(1)
    rounding = squared_errors(weight, RTN(bits=bits).quantize_weight(weight, None).dequantize())
    assert (mine <= rounding.sum(1)).all()


def test_no_sensitivities_means_equal_ones() -> None:
    weight = normal(4, 64)
    without, equal = quantize(weight, 3), quantize(weight, 3, torch.full_like(weight, 0.2))
    assert torch.equal(without.codes, equal.codes)
    assert torch.equal(without.codebook, equal.codebook)


@pytest.mark.parametrize("bits", BITS)
def test_codes_point_to_the_nearest_of_an_ascending_codebook(bits: int) -> None:
    weight = normal(8, 300)
    packed = quantize(weight, bits)
    assert packed.codes.dtype == torch.uint8
    assert packed.codebook.dtype == torch.float16
    assert packed.codebook.shape == (8, 2**bits)
    assert (packed.codebook.diff(dim=1) >= 0).all()
    assert int(packed.codes.max()) == 2**bits - 1
    every = (weight[:, :, None] - packed.codebook.float()[:, None]).abs()
    rounding = weight.abs().max() * 2**-11  # of the codebook to float16
    chosen = (weight - packed.dequantize()).abs()
    assert (chosen <= every.min(2).values + 2 * rounding).all()


def test_each_entry_is_the_weighted_mean_of_its_members() -> None:
    weight, sensitivity = normal(4, 256), normal(4, 256, seed=1).square()
    packed = quantize(weight, 3, sensitivity)
    for row in range(4):
        for code in range(8):
            members = packed.codes[row] == code
            share = sensitivity[row, members] / sensitivity[row, members].sum()
            mean = (share * weight[row, members]).sum()
            assert packed.codebook[row, code].item() == pytest.approx(mean.item(), abs=2e-3)


def test_sensitive_weights_get_smaller_errors() -> None:
    weight = normal(8, 256)
    sensitive = torch.rand(weight.shape, generator=torch.Generator().manual_seed(2)) < 0.1
    fisher = torch.where(sensitive, 1000.0, 1.0)
    aware = squared_errors(weight, quantize(weight, 3, fisher).dequantize())
    blind = squared_errors(weight, quantize(weight, 3).dequantize())
    assert aware[sensitive].mean() < blind[sensitive].mean() / 2
    assert aware[~sensitive].mean() > blind[~sensitive].mean()
    assert ((fisher * aware).sum(1) < (fisher * blind).sum(1)).all()


def test_as_many_sensitive_weights_as_clusters_cost_nothing() -> None:
    weight = normal(8, 256)
    fisher = torch.ones_like(weight)
    fisher[:, ::32] = 1e6  # eight per row
    error = (weight - quantize(weight, 3, fisher).dequantize()).abs()
    assert error[:, ::32].max() < 2e-3
    assert error.max() > 0.1


@pytest.mark.parametrize("bits", [2, 4, 6])
def test_following_a_weight_is_lloyds_algorithm(bits: int) -> None:
    """Each call assigns to the last codebook, then takes the weighted means, in plain loops."""
    weight, fisher = normal(6, 300), normal(6, 300, seed=1).square()
    follow = KMeans(bits=bits).follow(weight, fisher)
    codebook = quantize(weight, bits, fisher).codebook.double()
    for step in range(3):
        moved = weight + 0.05 * step * normal(6, 300, seed=2)
        packed = follow(moved)
        found = packed.tables()["codebook"].double()
        for row in range(6):
            values, weights = moved[row].double(), fisher[row].double()
            nearest = (values[:, None] - codebook[row]).abs().argmin(1)
            for entry in range(2**bits):
                members = nearest == entry
                if members.any():
                    mean = (weights[members] * values[members]).sum() / weights[members].sum()
                    codebook[row, entry] = mean
        torch.testing.assert_close(found, codebook, rtol=2e-3, atol=1e-5)
        expected = codebook.gather(1, packed.codes.long()).float()
        torch.testing.assert_close(packed.dequantize(), expected, rtol=2e-3, atol=1e-5)


def test_following_keeps_entries_that_lose_all_their_members() -> None:
    weight = torch.tensor([[0.0, 1.0, 2.0, 3.0]]).repeat(1, 4)
    follow = KMeans(bits=2).follow(weight, torch.ones_like(weight))
    left = follow(torch.where(weight == 2.0, 3.0, weight))
    assert left.tables()["codebook"].tolist() == [[0.0, 1.0, 2.0, 3.0]]
    assert left.codes[0, :4].tolist() == [0, 1, 3, 3]


@pytest.mark.parametrize("architecture", ["Llama", "GPT2"])
def test_each_layer_is_clustered_with_its_own_sensitivity(architecture: str) -> None:
    model = tiny_model(architecture)
    sensitivities = {
        name: normal(*layer.weight.shape, seed=index).square()
        for index, (name, layer) in enumerate(model.layers.items())
    }
    quantized = KMeans(bits=3).quantize(model, [], sensitivities)
    modules = dict(quantized.model.network.named_modules())
    for name, packed in quantized.weights.items():
        own = quantize(model.layers[name].weight, 3, sensitivities[name])
        assert torch.equal(packed.codes, own.codes)
        stored = modules[name].weight.T if architecture == "GPT2" else modules[name].weight
        assert torch.equal(stored, packed.dequantize())


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_average_bits_in_closed_form(bits: int) -> None:
    """A row of n inputs stores ``2**bits`` values of 16 bits more; down_proj's n is 64, else 32."""
    quantized = KMeans(bits=bits).quantize(tiny_model(), [])
    narrow, wide = 32 * (32 + 16 + 16 + 32 + 64 + 64), 32 * 64
    tables = (narrow / 32 + wide / 64) * 16 * 2**bits
    assert quantized.average_bits == pytest.approx(bits + tables / (narrow + wide), rel=1e-12)


@pytest.mark.parametrize("broken", [1e5, float("inf"), float("nan")])
def test_weights_that_no_table_holds_are_refused(broken: float) -> None:
    weight = normal(4, 16)
    weight[2, 3] = broken
    with pytest.raises(NpftError):
        quantize(weight, 2)


@pytest.mark.parametrize("broken", [-1.0, float("inf"), float("nan")])
def test_broken_sensitivities_are_refused(broken: float) -> None:
    sensitivity = torch.ones(4, 16)
    sensitivity[2, 3] = broken
    with pytest.raises(NpftError, match="weights must be finite and non-negative"):
        quantize(normal(4, 16), 2, sensitivity)
