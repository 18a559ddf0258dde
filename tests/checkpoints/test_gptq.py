"""The GPTQ layout, read by the book: AutoGPTQ's formulas, one weight at a time.

That other software opens it is tested where that software is: in npft-gptq.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from checkpoint_folders import act_ordered, quantized, stored
from torch import Tensor

from npft import checkpoints
from npft.artifacts import QuantizedModel
from npft.errors import Unavailable
from npft.quantizers import RTN

LAYER = "model.layers.1.mlp.down_proj"
WIDTHS = [2, 3, 4, 8]
WHOLE_WORDS = {"num_key_value_heads": 4}  # 16 outputs of 3 bits fill no 32-bit words


def bit_fields(words: np.ndarray, bits: int) -> list[int]:
    """The codes in a column of 32-bit words, the lowest bits first, across word borders."""
    stream = 0
    for index, word in enumerate(words.astype(np.uint32).tolist()):
        stream |= word << (32 * index)
    count = 32 * len(words) // bits
    return [(stream >> (bits * i)) & (2**bits - 1) for i in range(count)]


def by_the_book(tensors: dict[str, Tensor], bits: int) -> np.ndarray:
    """``(out, in)``: (code - (stored zero + 1)) * scale of the input's group."""
    qweight, qzeros, scales, g_idx = (
        tensors[f"{LAYER}.{part}"].numpy() for part in ("qweight", "qzeros", "scales", "g_idx")
    )
    out = scales.shape[1]
    zeros = [[z + 1 for z in bit_fields(qzeros[g], bits)] for g in range(len(qzeros))]
    weight = np.zeros((out, len(g_idx)), dtype=np.float32)
    for row in range(out):
        for column, code in enumerate(bit_fields(qweight[:, row], bits)):
            group = g_idx[column]
            weight[row, column] = np.float32(code - zeros[group][row]) * np.float32(
                scales[group, row]
            )
    return weight


def plain(bits: int, group_size: int, sym: bool = False) -> QuantizedModel:
    """Without rows of one sign, whose zero point of 0 the layout cannot spell as itself less 1."""
    from tiny import tiny_model

    return RTN(bits=bits, group_size=group_size, sym=sym, format="gptq").quantize(
        tiny_model(**WHOLE_WORDS), []
    )


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("group_size", [0, 16])
@pytest.mark.parametrize("sym", [False, True])
def test_by_the_book(bits: int, group_size: int, sym: bool, tmp_path) -> None:
    made = plain(bits, group_size, sym)
    made.save(tmp_path / "q")
    weight = made.weights[LAYER]
    assert int(weight.zero.min()) > 0  # type: ignore[attr-defined]
    expected = weight.dequantize().numpy()
    assert np.array_equal(by_the_book(stored(tmp_path / "q"), bits), expected)


def test_act_order_by_the_book(tmp_path) -> None:
    made = act_ordered(plain(4, 16))
    made.save(tmp_path / "q")
    settings = json.loads((tmp_path / "q" / "config.json").read_text())["quantization_config"]
    assert settings["desc_act"] is True
    expected = made.weights[LAYER].dequantize().numpy()
    assert np.array_equal(by_the_book(stored(tmp_path / "q"), 4), expected)


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("group_size", [0, 16])
def test_round_trip_with_zero_points_at_both_ends(bits: int, group_size: int, tmp_path) -> None:
    made = quantized(RTN(bits=bits, group_size=group_size, format="gptq"), **WHOLE_WORDS)
    made.save(tmp_path / "q")
    again = checkpoints.load(tmp_path / "q", device="cpu")
    assert again.label == made.label
    for name, weight in made.weights.items():
        assert torch.equal(again.weights[name].dequantize(), weight.dequantize()), name


def test_what_the_config_says(tmp_path) -> None:
    plain(4, 16, sym=True).save(tmp_path / "q")
    settings = json.loads((tmp_path / "q" / "config.json").read_text())["quantization_config"]
    expected = {
        "quant_method": "gptq",
        "bits": 4,
        "group_size": 16,
        "sym": True,
        "desc_act": False,
        "checkpoint_format": "gptq",
    }
    assert {key: settings[key] for key in expected} == expected


def test_widths_that_it_lacks_are_not_available() -> None:
    from tiny import tiny_model

    with pytest.raises(Unavailable, match="no 5 bits"):
        checkpoints.check(RTN(bits=5, format="gptq"), tiny_model())
