"""Dense-and-sparse, against a plain reading of SqueezeLLM's section 4.2."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import tiny_model, tiny_tokens
from torch import Tensor

from npft import checkpoints
from npft.contracts import Plugin
from npft.errors import NpftError
from npft.plugins import discover
from npft.quantizers import KMeans
from npft.quantizers.kmeans_1d import weighted_kmeans_1d
from npft.testing import check_quantizer

ROWS, COLUMNS = 12, 250


def matrix(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Weights with a few large ones, and sensitivities of a wide range."""
    random = torch.Generator().manual_seed(seed)
    weight = torch.randn(ROWS, COLUMNS, generator=random)
    weight.view(-1)[torch.randperm(weight.numel(), generator=random)[:9]] *= 30
    return weight, torch.rand(ROWS, COLUMNS, generator=random) ** 6


def kept_by_sorting(weight: Tensor, sensitivity: Tensor, first: int, second: int) -> set[int]:
    """The most sensitive, then the largest of the others."""
    sensitive = np.argsort(-sensitivity.flatten().numpy())[:first].tolist()
    by_size = np.argsort(-weight.flatten().abs().numpy()).tolist()
    return set(sensitive) | set([i for i in by_size if i not in sensitive][:second])


@pytest.mark.parametrize(
    ("shares", "counts"),
    [((0.01, 0.0), (30, 0)), ((0.0, 0.005), (0, 15)), ((0.001, 0.004), (3, 12))],
)
@pytest.mark.parametrize("bits", [3, 4])
def test_what_is_kept_and_what_is_clustered(shares, counts, bits: int) -> None:
    weight, sensitivity = matrix()
    options = dict(zip(("sparse_sensitivity", "sparse_magnitude"), shares, strict=True))
    packed = KMeans(bits=bits, **options).quantize_weight(weight, sensitivity)
    assert packed.sparse is not None
    positions = packed.sparse.positions(COLUMNS).tolist()
    assert positions == sorted(kept_by_sorting(weight, sensitivity, *counts))
    # What is kept has its value, to the rounding of what the codebook lacks.
    kept = torch.tensor(positions)
    lacking = (weight - packed.dequantize_dense()).take(kept)
    off = (packed.dequantize() - weight).take(kept).abs()
    assert (off <= lacking.abs() * 2**-11 + 2**-24).all()
    # The others are what clustering them alone gives, by rows without the kept ones.
    for row in range(ROWS):
        others = [c for c in range(COLUMNS) if row * COLUMNS + c not in positions]
        alone, _ = weighted_kmeans_1d(
            weight[row : row + 1, others], sensitivity[row : row + 1, others], 2**bits
        )
        cost_alone = _cost(weight[row, others], sensitivity[row, others], alone[0])
        dense = packed.dequantize_dense()[row, others]
        cost = float((sensitivity[row, others] * (weight[row, others] - dense).square()).sum())
        assert cost == pytest.approx(cost_alone, rel=0.02)  # float16 codebook; another start


def _cost(values: Tensor, weights: Tensor, centroids: Tensor) -> float:
    nearest = (values[:, None] - centroids).square().amin(1)
    return float((weights * nearest).sum())


def test_without_a_share_nothing_is_sparse() -> None:
    weight, sensitivity = matrix()
    assert KMeans(bits=3).quantize_weight(weight, sensitivity).sparse is None
    assert KMeans(bits=3).variant == ""


def test_a_share_of_nothing_is_an_empty_part() -> None:
    weight, _ = matrix()
    packed = KMeans(bits=3, sparse_magnitude=1e-5).quantize_weight(weight, None)
    assert packed.sparse is not None
    assert packed.sparse.values.numel() == 0
    assert torch.equal(packed.dequantize(), packed.dequantize_dense())


def test_average_bits_are_counted_as_squeezellm_counts_them() -> None:
    weight = torch.randn(64, 4096, generator=torch.Generator().manual_seed(0))
    packed = KMeans(bits=3, sparse_magnitude=0.0045).quantize_weight(weight, None)
    kept = round(0.0045 * weight.numel())
    # Codes, 8 float16 entries a row; 16 + 32 bits per float, a 32-bit offset per row.
    expected = 3 * weight.numel() + 64 * 8 * 16 + 48 * kept + 32 * 65
    assert packed.storage_bits == expected
    # SqueezeLLM's table 1 for LLaMA-7B: 3.02 dense, 3.24 with 0.45%.
    assert expected / weight.numel() == pytest.approx(3.02 + 0.22, abs=0.03)


def test_the_whole_way_through_a_checkpoint(tmp_path) -> None:
    model = tiny_model()
    quantizer = KMeans(bits=3, sparse_sensitivity=0.01, sparse_magnitude=0.02)
    assert quantizer.label == "kmeans-3-s1%-m2%"
    ones = {name: torch.ones(layer.weight.shape) for name, layer in model.layers.items()}
    quantized = quantizer.quantize(model, [], ones)
    quantized.save(tmp_path / "saved")
    again = checkpoints.load(tmp_path / "saved", device="cpu")
    assert again.label == quantized.label
    assert again.average_bits == quantized.average_bits
    tokens = tiny_tokens()
    assert torch.equal(again.model.network(tokens).logits, quantized.model.network(tokens).logits)


def test_contract() -> None:
    check_quantizer(KMeans(bits=3, sparse_sensitivity=0.01, sparse_magnitude=0.01))


def test_following_searches_again() -> None:
    weight, sensitivity = matrix()
    quantizer = KMeans(bits=3, sparse_magnitude=0.01)
    moved = weight + 0.1
    followed = quantizer.follow(weight, sensitivity)(moved)
    anew = quantizer.quantize_weight(moved, sensitivity)
    assert torch.equal(followed.dequantize(), anew.dequantize())


def test_a_share_out_of_range_is_refused() -> None:
    with pytest.raises(NpftError, match="sparse_magnitude"):
        _build(sparse_magnitude=0.5)


def _build(**options: object) -> Plugin:
    return discover().build("quantizer", "kmeans", {"bits": 3, **options})
