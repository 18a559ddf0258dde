"""compressed-tensors: our codes are the library's, and what it and transformers open is ours."""

from __future__ import annotations

import pytest
import torch
from checkpoint_folders import logits, quantized, with_sparse
from tiny import tiny_model
from transformers import AutoModelForCausalLM

from npft import checkpoints
from npft.errors import NpftError, Unavailable
from npft.quantizers import RTN, KMeans

library = pytest.importorskip("compressed_tensors")

SETTINGS = [
    pytest.param(bits, group_size, sym, id=f"{bits}-g{group_size}-{'sym' if sym else 'asym'}")
    for bits in (4, 8)
    for group_size in (0, 32)
    for sym in (True, False)
]


def of(bits: int, group_size: int, sym: bool, **more: object) -> RTN:
    return RTN(bits=bits, group_size=group_size, sym=sym, format="compressed-tensors", **more)


@pytest.mark.parametrize(("bits", "group_size", "sym"), SETTINGS)
def test_our_codes_are_the_librarys(bits: int, group_size: int, sym: bool) -> None:
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.lifecycle.forward import quantize
    from compressed_tensors.quantization.utils import calculate_qparams

    weight = torch.randn(48, 256, generator=torch.Generator().manual_seed(bits))
    weight[:3], weight[3:5] = weight[:3].abs(), -weight[3:5].abs()
    grouped = weight.view(48, -1, group_size or 256)
    args = QuantizationArgs(
        num_bits=bits,
        symmetric=sym,
        strategy="group" if group_size else "channel",
        group_size=group_size or None,
    )
    scale, zero = calculate_qparams(grouped.amin(2), grouped.amax(2), args)
    theirs = quantize(weight, scale, zero, args).to(torch.int16) + 2 ** (bits - 1)
    ours = of(bits, group_size, sym).quantize_weight(weight, None)
    assert torch.equal(ours.codes.to(torch.int16), theirs)


@pytest.mark.parametrize(("bits", "group_size", "sym"), SETTINGS)
def test_transformers_opens_it(bits: int, group_size: int, sym: bool, tmp_path) -> None:
    made = quantized(of(bits, group_size, sym))
    made.save(tmp_path / "q")
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "q", dtype=torch.float32)
    ours = logits(made.model.network)
    # What it dequantizes while it loads, it rounds to the scale's 16 bits.
    assert (logits(opened) - ours).norm() < (1e-5 if sym else 1e-3) * ours.norm()


@pytest.mark.parametrize(("bits", "group_size", "sym"), SETTINGS)
def test_the_library_unpacks_our_weights(bits: int, group_size: int, sym: bool, tmp_path) -> None:
    from compressed_tensors.compressors import unpack_from_int32
    from safetensors.torch import load_file

    made = quantized(of(bits, group_size, sym))
    made.save(tmp_path / "q")
    held = load_file(tmp_path / "q" / checkpoints.loading.WEIGHTS)
    for name, weight in made.weights.items():
        shape = held[f"{name}.weight_shape"]
        scale = held[f"{name}.weight_scale"].float()
        codes = unpack_from_int32(held[f"{name}.weight_packed"], bits, shape).float()
        zero = torch.zeros_like(scale)
        if not sym:
            packed = held[f"{name}.weight_zero_point"]
            zero = unpack_from_int32(packed, bits, scale.shape, packed_dim=0).float()
        each = weight.shape[1] // scale.shape[1]
        expanded = (t.repeat_interleave(each, 1) for t in (zero, scale))
        stands_for = (codes - next(expanded)) * next(expanded)
        assert torch.equal(stands_for, weight.dequantize()), name


@pytest.mark.parametrize(("bits", "group_size", "sym"), SETTINGS)
def test_round_trip(bits: int, group_size: int, sym: bool, tmp_path) -> None:
    made = quantized(of(bits, group_size, sym))
    made.save(tmp_path / "q")
    again = checkpoints.load(tmp_path / "q", device="cpu")
    assert again.label == made.label
    for name, weight in made.weights.items():
        assert torch.equal(again.weights[name].codes, weight.codes)
        for table, values in weight.tables().items():
            assert torch.equal(again.weights[name].tables()[table], values)


def test_tied_embeddings_stay_tied(tmp_path) -> None:
    made = quantized(of(4, 0, True), tie_word_embeddings=True)
    made.save(tmp_path / "q")
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "q")
    assert opened.lm_head.weight is opened.model.embed_tokens.weight
    assert torch.equal(opened.lm_head.weight, made.model.network.lm_head.weight)


def test_three_bits_and_conv1d_are_not_available() -> None:
    with pytest.raises(Unavailable, match="4 and 8 bits"):
        checkpoints.check(of(3, 0, False), tiny_model())
    with pytest.raises(Unavailable, match="Conv1D"):
        checkpoints.check(of(4, 0, False), tiny_model("GPT2"))


def test_codebooks_and_sparse_parts_have_no_place(tmp_path) -> None:
    from dataclasses import replace

    codebook = replace(quantized(KMeans(bits=4)), format="compressed-tensors")
    with pytest.raises(NpftError, match="npft's own format"):
        codebook.save(tmp_path / "a")
    with pytest.raises(NpftError, match="npft's own format"):
        with_sparse(quantized(of(4, 0, False))).save(tmp_path / "b")
    assert not (tmp_path / "a").exists()
    assert not (tmp_path / "b").exists()
