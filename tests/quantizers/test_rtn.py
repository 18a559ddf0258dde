"""Round to nearest: the stored codes and tables, and the model that runs on them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import tiny_model, tiny_tokens
from torch import Tensor

from npft.artifacts import UniformWeight
from npft.errors import NpftError
from npft.quantizers import RTN
from npft.testing import check_quantizer

BITS = range(2, 9)


def normal(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def quantize(weight: Tensor, bits: int, group_size: int = 0) -> UniformWeight:
    packed = RTN(bits=bits, group_size=group_size).quantize_weight(weight, None)
    assert isinstance(packed, UniformWeight)
    return packed


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("group_size", [0, 16])
def test_contract(bits: int, group_size: int) -> None:
    check_quantizer(RTN(bits=bits, group_size=group_size))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("group_size", [0, 8])
def test_codes_and_tables_against_numpy(bits: int, group_size: int) -> None:
    weight = normal(6, 24)
    packed = quantize(weight, bits, group_size)
    size = group_size or 24
    groups = weight.numpy().reshape(6, -1, size)
    low = np.minimum(groups.min(2), 0)
    scale = (np.maximum(groups.max(2), 0) - low) / np.float32(2**bits - 1)
    zero = np.round(-low / scale)
    codes = np.clip(np.round(groups / scale[..., None]) + zero[..., None], 0, 2**bits - 1)
    stored = scale.astype(np.float16)
    stands_for = (codes - zero[..., None]) * stored[..., None].astype(np.float32)
    np.testing.assert_array_equal(packed.codes.numpy(), codes.reshape(6, 24))
    np.testing.assert_array_equal(packed.scale.numpy(), stored)
    np.testing.assert_array_equal(packed.zero.numpy(), zero)
    np.testing.assert_array_equal(packed.dequantize().numpy(), stands_for.reshape(6, 24))


@pytest.mark.parametrize("bits", BITS)
def test_error_is_half_a_step_and_the_rounding_of_the_stored_scale(bits: int) -> None:
    weight = normal(32, 64)
    packed = quantize(weight, bits)
    step = (weight.amax(1) - weight.amin(1)) / (2**bits - 1)
    half_precision = weight.abs() * 2**-11
    bound = step[:, None] / 2 * 1.001 + half_precision * 1.01
    error = (packed.dequantize() - weight).abs()
    assert (error <= bound).all()
    assert (error > 0.9 * step[:, None] / 2).any()


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("group_size", [0, 16])
def test_quantizing_twice_keeps_the_codes(bits: int, group_size: int) -> None:
    once = quantize(normal(16, 64), bits, group_size)
    twice = quantize(once.dequantize(), bits, group_size)
    assert torch.equal(twice.codes, once.codes)
    assert torch.equal(twice.scale, once.scale)
    assert torch.equal(twice.zero, once.zero)


def test_following_a_weight_quantizes_it_afresh() -> None:
    follow = RTN(bits=3, group_size=16).follow(normal(4, 32), None)
    moved = normal(4, 32, seed=1)
    assert torch.equal(follow(moved).dequantize(), quantize(moved, 3, 16).dequantize())


def test_zero_is_exact_everywhere() -> None:
    weight = normal(8, 32) + 2
    weight[:, ::5] = 0
    weight[3] = 0
    stands_for = quantize(weight, 3).dequantize()
    assert not stands_for[weight == 0].any()


@pytest.mark.parametrize("architecture", ["Llama", "GPT2"])
@pytest.mark.parametrize("group_size", [0, 16])
def test_the_runnable_model_holds_what_the_codes_stand_for(
    architecture: str, group_size: int
) -> None:
    model = tiny_model(architecture)
    before = {name: value.clone() for name, value in model.network.state_dict().items()}
    quantized = RTN(bits=3, group_size=group_size).quantize(model, [])
    modules = dict(quantized.model.network.named_modules())
    for name, packed in quantized.weights.items():
        own = quantize(model.layers[name].weight, 3, group_size)
        assert torch.equal(packed.codes, own.codes)
        stored = modules[name].weight.T if architecture == "GPT2" else modules[name].weight
        assert torch.equal(stored, packed.dequantize())
        assert not torch.equal(stored, model.layers[name].weight)
    rest = [name for name in before if name.removesuffix(".weight") not in quantized.weights]
    after = quantized.model.network.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in rest)
    now = model.network.state_dict()
    assert all(torch.equal(now[name], before[name]) for name in before)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_average_bits_in_closed_form(bits: int) -> None:
    """Llama's down_proj has 64 inputs, all others 32; a group stores 16 + bits more."""
    quantized = RTN(bits=bits, group_size=16).quantize(tiny_model(), [])
    assert quantized.average_bits == bits + (16 + bits) / 16
    quantized = RTN(bits=bits).quantize(tiny_model(), [])
    narrow = 32 * 32 + 2 * 16 * 32 + 32 * 32 + 2 * 64 * 32  # q, k and v, o, gate and up
    wide = 32 * 64
    tables = (narrow / 32 + wide / 64) * (16 + bits)
    assert quantized.average_bits == pytest.approx(bits + tables / (narrow + wide), rel=1e-12)


def test_more_bits_predict_more_like_the_original() -> None:
    model, tokens = tiny_model(), tiny_tokens()
    errors = []
    for bits in (2, 4, 6, 8):
        quantized = RTN(bits=bits).quantize(model, [])
        with torch.no_grad():
            difference = quantized.model.network(tokens).logits - model.network(tokens).logits
        errors.append(float(difference.square().mean()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0] / 1000


def test_a_group_size_that_does_not_divide_names_the_layers() -> None:
    model = tiny_model()
    with pytest.raises(NpftError) as caught:
        RTN(group_size=64).quantize(model, [])
    message = str(caught.value)
    assert "rtn with group_size=64 cannot quantize 12 layers whose 32 inputs" in message
    assert "model.layers.0.self_attn.q_proj" in message
    assert "down_proj" not in message
    with pytest.raises(NpftError, match="14 layers whose 32, 64 inputs"):
        RTN(group_size=24).check(model)
    RTN(group_size=32).check(model)


@pytest.mark.parametrize("broken", [1e6, float("inf"), float("nan")])
def test_weights_that_no_table_holds_are_refused(broken: float) -> None:
    weight = normal(4, 16)
    weight[2, 3] = broken
    with pytest.raises(NpftError, match="do not fit a 16-bit table"):
        quantize(weight, 2)
    assert torch.isfinite(quantize(normal(4, 16) * 1e4, 2).dequantize()).all()


def test_a_weight_that_is_followed_beyond_the_table_is_not_finite() -> None:
    """Nobody looks on the way, but the loss under this noise tells."""
    weight = normal(4, 16)
    follow = RTN(bits=2).follow(weight, None)
    weight[2, 3] = 1e6
    with pytest.raises(NpftError, match="do not fit a 16-bit table"):
        RTN(bits=2).follow(weight, None)
    assert not torch.isfinite(follow(weight).dequantize()[2]).any()
    assert torch.isfinite(follow(weight).dequantize()[:2]).all()


@pytest.mark.parametrize(
    "options", [{"bits": 1}, {"bits": 9}, {"group_size": -1}, {"grouping": 8}, {"bits": 3.5}]
)
def test_bad_options_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        RTN(**options)  # type: ignore[arg-type]
