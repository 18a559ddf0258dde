"""Codes in 32-bit words, as GPTQ's and AWQ's layouts have them."""

from __future__ import annotations

import torch
from torch import Tensor

from npft.packed import bits as streams


def pack(codes: Tensor, bits: int) -> Tensor:
    """``(rows, n)`` uint8 codes as ``(rows, n * bits / 32)`` int32, a bit stream per row.

    Code j has the bits ``j * bits .. (j + 1) * bits - 1`` of the row, least significant first, so
    that codes of 3 bits cross from word to word, 32 of them in 3 words.
    """
    return streams.pack(codes, bits).view(torch.int32)


def unpack(words: Tensor, bits: int) -> Tensor:
    """The inverse of :func:`pack`: ``(rows, words * 32 / bits)`` uint8."""
    count = words.shape[1] * 32 // bits
    return streams.unpack(words.contiguous().view(torch.uint8), bits, count)


def fill_whole(count: int, bits: int) -> bool:
    """Whether ``count`` codes end where a word ends."""
    return count * bits % 32 == 0
