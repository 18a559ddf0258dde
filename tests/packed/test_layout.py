"""Tiles of codes: nothing lost, nothing overlapping, and where the kernels look for it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from npft.packed.layout import CHUNK, HALVES, PAIRS, pack, places, unpack

ORDERS = [(PAIRS, bits) for bits in (2, 3, 4)] + [(HALVES, bits) for bits in (2, 3, 4, 8)]


@pytest.mark.parametrize(("order", "bits"), ORDERS)
def test_every_bit_has_a_place_of_its_own(order: str, bits: int) -> None:
    """32 codes fill ``bits`` words to the last bit."""
    where = {(word, place) for _, _, word, place in places(order, bits)}
    assert where == {(word, place) for word in range(bits) for place in range(32)}
    whose = {(code, bit) for code, bit, _, _ in places(order, bits)}
    assert whose == {(code, bit) for code in range(CHUNK) for bit in range(bits)}


@given(st.sampled_from(ORDERS), st.integers(1, 70), st.integers(1, 300), st.integers(0, 2**31))
def test_unpack_inverts_pack(
    order_bits: tuple[str, int], rows: int, columns: int, seed: int
) -> None:
    order, bits = order_bits
    random = torch.Generator().manual_seed(seed)
    codes = torch.randint(2**bits, (rows, columns), generator=random).to(torch.uint8)
    tiles = pack(codes, bits, order)
    assert tiles.shape == (-(-rows // 32), -(-columns // 128), bits, 32, 4)
    assert torch.equal(unpack(tiles, order, rows, columns), codes)


def test_a_lane_reads_its_row() -> None:
    """Lane r's words hold row r's codes and no others."""
    codes = torch.zeros(32, 128, dtype=torch.uint8)
    codes[5] = 15
    tiles = pack(codes, 4, PAIRS)
    assert (tiles[0, 0, :, 5] == -1).all()
    assert int((tiles != 0).sum()) == 16


def test_a_byte_is_a_pair_of_neighbours() -> None:
    codes = torch.arange(128, dtype=torch.uint8).remainder(16).expand(32, 128).contiguous()
    first = int(pack(codes, 4, PAIRS)[0, 0, 0, 0, 0]) & 0xFFFFFFFF
    assert first == 0x76543210


def test_halves_hold_neighbours_at_one_place() -> None:
    codes = torch.arange(128, dtype=torch.uint8).remainder(16).expand(32, 128).contiguous()
    first = int(pack(codes, 4, HALVES)[0, 0, 0, 0, 0]) & 0xFFFFFFFF
    assert first & 0x000F000F == 0x00010000
    assert (first >> 4) & 0x000F000F == 0x00030002
