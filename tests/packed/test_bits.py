import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from npft.packed.bits import pack, unpack


@given(st.integers(1, 8), st.integers(1, 5), st.integers(1, 70), st.integers(0, 2**31))
def test_unpack_inverts_pack(bits: int, rows: int, n: int, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    codes = torch.randint(2**bits, (rows, n), generator=random).to(torch.uint8)
    packed = pack(codes, bits)
    assert packed.shape == (rows, -(-n * bits // 8))
    assert torch.equal(unpack(packed, bits, n), codes)


@given(st.integers(1, 8), st.lists(st.integers(0, 255), min_size=1, max_size=40))
def test_layout_is_a_little_endian_bit_stream(bits: int, values: list[int]) -> None:
    codes = [value % 2**bits for value in values]
    stream = sum(code << (bits * j) for j, code in enumerate(codes))
    expected = stream.to_bytes(-(-len(codes) * bits // 8), "little")
    packed = pack(torch.tensor([codes], dtype=torch.uint8), bits)
    assert bytes(packed[0].tolist()) == expected


def test_rows_of_a_wrong_length_are_refused() -> None:
    with pytest.raises(ValueError, match="do not take 4 bytes"):
        unpack(torch.zeros(2, 4, dtype=torch.uint8), 3, 16)
