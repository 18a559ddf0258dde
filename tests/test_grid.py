"""The min-max grid against GPTQ's formula and against what a grid must hold."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from npft.errors import NpftError
from npft.grid import Grid, decode, encode, minmax, step_size, step_sizes_at

BITS = range(2, 9)


def gptq(weight: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`Quantizer.find_params` and `quantize` of GPTQ (asymmetric, per channel), in numpy.

    Source: https://github.com/IST-DASLab/gptq, quant.py.
    """
    maxq = 2**bits - 1
    xmin = np.minimum(weight.min(1), 0)
    xmax = np.maximum(weight.max(1), 0)
    empty = (xmin == 0) & (xmax == 0)
    xmin[empty], xmax[empty] = -1, 1
    scale = (xmax - xmin) / np.float32(maxq)
    zero = np.round(-xmin / scale)
    codes = np.clip(np.round(weight / scale[:, None]) + zero[:, None], 0, maxq)
    return codes, scale, scale[:, None] * (codes - zero[:, None])


def normal(rows: int, columns: int, seed: int = 0, shift: float = 0.0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) + shift


def rounded(weight: torch.Tensor, grid: Grid) -> tuple[torch.Tensor, torch.Tensor]:
    scale, zero = minmax(weight, grid)
    codes = encode(weight, scale, zero, grid)
    return codes, decode(codes, scale, zero, grid)


matrices = arrays.arrays(
    np.float32,
    arrays.array_shapes(min_dims=2, max_dims=2, max_side=12),
    elements=st.floats(-1e4, 1e4, width=32).map(lambda x: 0.0 if abs(x) < 1e-4 else x),
)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("shift", [0.0, 3.0, -3.0])
def test_agrees_with_gptq(bits: int, shift: float) -> None:
    weight = normal(16, 40, shift=shift)
    scale, zero = minmax(weight, Grid(bits))
    codes = encode(weight, scale, zero, Grid(bits))
    their_codes, their_scale, their_weight = gptq(weight.numpy(), bits)
    np.testing.assert_array_equal(scale[:, 0].numpy(), their_scale)
    np.testing.assert_array_equal(codes.numpy(), their_codes)
    np.testing.assert_array_equal(decode(codes, scale, zero, Grid(bits)).numpy(), their_weight)


@given(weight=matrices, bits=st.sampled_from(BITS))
@settings(max_examples=150, deadline=None)
def test_error_is_at_most_half_a_step(weight: np.ndarray, bits: int) -> None:
    grid = Grid(bits)
    tensor = torch.from_numpy(weight)
    codes, stands_for = rounded(tensor, grid)
    assert codes.min() >= 0
    assert codes.max() <= 2**bits - 1
    assert torch.equal(codes, codes.round())
    half = step_size(tensor, grid) / 2
    assert ((stands_for - tensor).abs() <= half * (1 + 1e-4)).all()


@given(weight=matrices, bits=st.sampled_from(BITS))
@settings(max_examples=150, deadline=None)
def test_extremes_and_zero_are_on_the_grid(weight: np.ndarray, bits: int) -> None:
    """Up to the rounding of the zero point the grid spans min .. max, and 0 costs no error."""
    grid = Grid(bits)
    tensor = torch.from_numpy(weight)
    scale, zero = minmax(tensor, grid)
    lowest, highest = -zero * scale, (grid.max_code - zero) * scale
    slack = scale / 2 * (1 + 1e-4)
    assert ((lowest - tensor.amin(1, keepdim=True).clamp(max=0)).abs() <= slack).all()
    if (tensor != 0).any(1).all():
        assert ((highest - tensor.amax(1, keepdim=True).clamp(min=0)).abs() <= slack).all()
    origin = torch.zeros_like(tensor)
    assert not decode(encode(origin, scale, zero, grid), scale, zero, grid).any()


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("group_size", [0, 10])
def test_rounding_twice_changes_nothing(bits: int, group_size: int) -> None:
    grid = Grid(bits, group_size)
    codes, stands_for = rounded(normal(32, 40), grid)
    codes_again, stands_for_again = rounded(stands_for, grid)
    assert torch.equal(codes_again, codes)
    torch.testing.assert_close(stands_for_again, stands_for, rtol=1e-6, atol=0)


def test_each_group_has_the_grid_of_its_own_inputs() -> None:
    weight = normal(6, 40)
    scale, zero = minmax(weight, Grid(4, group_size=10))
    assert scale.shape == zero.shape == (6, 4)
    for group in range(4):
        alone = weight[:, 10 * group : 10 * (group + 1)]
        their_codes, their_scale, _ = gptq(alone.numpy(), 4)
        np.testing.assert_array_equal(scale[:, group].numpy(), their_scale)
        codes = encode(weight, scale, zero, Grid(4, group_size=10))
        np.testing.assert_array_equal(codes[:, 10 * group : 10 * (group + 1)].numpy(), their_codes)


@pytest.mark.parametrize("value", [0.7, -0.7])
@pytest.mark.parametrize("bits", BITS)
def test_constant_rows_are_exact(value: float, bits: int) -> None:
    weight = torch.full((2, 5), value)
    _, stands_for = rounded(weight, Grid(bits))
    torch.testing.assert_close(stands_for, weight, rtol=1e-6, atol=0)


def test_zero_rows_are_exact_and_leave_others_alone() -> None:
    weight = normal(3, 8)
    weight[1] = 0
    codes, stands_for = rounded(weight, Grid(4))
    assert not stands_for[1].any()
    assert torch.isfinite(stands_for).all()
    without = weight[[0, 2]]
    assert torch.equal(codes[[0, 2]], rounded(without, Grid(4))[0])


def test_one_huge_outlier_costs_the_rest_of_its_row_only() -> None:
    weight = normal(2, 64)
    weight[0, 5] = 1e4
    codes, stands_for = rounded(weight, Grid(4))
    assert codes[0].unique().numel() == 2  # the outlier, and everything else at zero
    assert stands_for[0, 5] == pytest.approx(1e4, rel=1e-3)
    assert not stands_for[0, weight[0] < 100].any()
    assert codes[1].unique().numel() > 8


@pytest.mark.parametrize("group_size", [0, 4])
def test_step_is_that_of_the_own_group(group_size: int) -> None:
    weight = normal(3, 8)
    size = group_size or 8
    expected = torch.empty_like(weight)
    for row in range(3):
        for start in range(0, 8, size):
            group = [*weight[row, start : start + size].tolist(), 0.0]
            expected[row, start : start + size] = (max(group) - min(group)) / 15
    torch.testing.assert_close(step_size(weight, Grid(4, group_size)), expected)
    positions = torch.tensor([0, 3, 4, 9, 23])
    found = step_sizes_at(weight, positions, Grid(4, group_size))
    torch.testing.assert_close(found, expected.flatten()[positions])


def test_zeros_have_no_step() -> None:
    """A group of zeros is stored exactly, whatever scale its table holds."""
    weight = normal(3, 8)
    weight[1] = 0
    assert (step_size(weight, Grid(4)) == 0).any(1).tolist() == [False, True, False]


def test_transposed_weights_have_the_grid_of_a_copy() -> None:
    weight = normal(8, 6).T
    assert not weight.is_contiguous()
    for mine, copied in zip(
        minmax(weight, Grid(4, 4)), minmax(weight.clone(), Grid(4, 4)), strict=True
    ):
        assert torch.equal(mine, copied)


@pytest.mark.parametrize("bits", [-1, 0, 1, 9, 16])
def test_bits_outside_the_range_are_refused(bits: int) -> None:
    with pytest.raises(NpftError, match=f"bits={bits} is outside 2..8"):
        Grid(bits)


def test_bad_group_sizes_are_refused() -> None:
    with pytest.raises(NpftError, match="group_size=-1 is negative"):
        Grid(4, -1)
    with pytest.raises(NpftError, match="group_size=3 does not divide the 8 inputs"):
        minmax(normal(2, 8), Grid(4, 3))
