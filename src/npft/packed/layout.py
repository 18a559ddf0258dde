"""The order in which packed layers keep their codes: the one in which the kernels read them.

A tile is 32 rows by 128 columns. Lane r of a warp holds row r of the tile: 4 chunks of 32 codes,
each chunk ``bits`` words of 32 bits. The tile lies in memory as ``bits`` times 32 lanes times 4
words, so that a warp reads it in ``bits`` loads of 16 bytes per lane with no gap between lanes.
Rows and columns are padded with code 0.

Within a chunk, codes ``2p`` and ``2p + 1`` are pair p. There are two orders of bits:

- ``PAIRS``: the two codes of a pair next to each other, as the index into a table of pairs;
- ``HALVES``: code ``2p`` in the lower and code ``2p + 1`` in the upper half of a word, at the same
  place, so that a mask makes two 16-bit numbers of them.

Words are filled with whole pairs; three words of 3-bit codes have 2 bits left over each, which
make up the sixteenth pair.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

ROWS = 32
UNIT = 128
CHUNK = 32

PAIRS = "pairs"
HALVES = "halves"

Place = tuple[int, int, int, int]
"""Bit ``bit`` of code ``code`` is bit ``place`` of word ``word``: (code, bit, word, place)."""


@cache
def places(order: str, bits: int) -> tuple[Place, ...]:
    """Where every bit of a chunk of 32 codes lies in its ``bits`` words."""
    step = bits if order == HALVES else 2 * bits
    whole = (16 if order == HALVES else 32) // step
    second = 16 if order == HALVES else bits
    found: list[Place] = []
    for code in range(CHUNK):
        pair, upper = divmod(code, 2)
        for bit in range(bits):
            if pair < whole * bits:
                place = step * (pair % whole) + bit + second * upper
                found.append((code, bit, pair // whole, place))
            elif order == HALVES:
                found.append((code, bit, bit, 15 + 16 * upper))
            else:
                at = bits * upper + bit
                found.append((code, bit, at // 2, 30 + at % 2))
    return tuple(found)


def pack(codes: Tensor, bits: int, order: str) -> Tensor:
    """Tiles ``(blocks, units, bits, 32, 4)`` int32 of ``(rows, columns)`` uint8 codes."""
    rows, columns = codes.shape
    padding = (0, -columns % UNIT, 0, -rows % ROWS)
    chunks = torch.nn.functional.pad(codes, padding).view(-(-rows // ROWS), ROWS, -1, CHUNK)
    words = torch.zeros(*chunks.shape[:3], bits, dtype=torch.int64, device=codes.device)
    for code, bit, word, place in places(order, bits):
        words[..., word] |= ((chunks[..., code].long() >> bit) & 1) << place
    signed = torch.where(words < 2**31, words, words - 2**32).to(torch.int32)
    blocks, units = len(signed), chunks.shape[2] // 4
    return signed.view(blocks, ROWS, units, bits, 4).permute(0, 2, 3, 1, 4).contiguous()


def unpack(tiles: Tensor, order: str, rows: int, columns: int) -> Tensor:
    """The inverse of :func:`pack`: ``(rows, columns)`` uint8 codes."""
    blocks, units, bits, _, _ = tiles.shape
    words = tiles.permute(0, 3, 1, 2, 4).reshape(blocks, ROWS, units * 4, bits)
    words = words.permute(3, 0, 1, 2).contiguous()
    codes = [_code(words, order, bits, code).to(torch.uint8) for code in range(CHUNK)]
    whole = torch.stack(codes, 3).view(blocks * ROWS, units * UNIT)
    return whole[:rows, :columns]


def _code(words: Tensor, order: str, bits: int, code: int) -> Tensor:
    """One code of every chunk, out of ``words (bits, ...)``; its bits may lie apart."""
    mine = [(bit, word, place) for c, bit, word, place in places(order, bits) if c == code]
    _, word, place = mine[0]
    if mine == [(bit, word, place + bit) for bit in range(bits)]:
        whole: Tensor = (words[word] >> place) & (2**bits - 1)
        return whole
    parts = [((words[w] >> at) & 1) << bit for bit, w, at in mine]
    return torch.stack(parts).sum(0)
