"""Codes of 1 to 8 bits as a dense little-endian bit stream per row."""

from __future__ import annotations

import torch
from torch import Tensor


def pack(codes: Tensor, bits: int) -> Tensor:
    """Pack ``(rows, n)`` uint8 codes below ``2**bits`` into ``(rows, ceil(n * bits / 8))`` bytes.

    Code j of a row occupies bits ``j * bits .. (j + 1) * bits - 1`` of the row's stream, least
    significant first; the last byte is padded with zeros.
    """
    shifts = torch.arange(bits, device=codes.device)
    stream = ((codes.unsqueeze(2) >> shifts) & 1).flatten(1)
    padding = -stream.shape[1] % 8
    stream = torch.nn.functional.pad(stream, (0, padding))
    weights = 2 ** torch.arange(8, device=codes.device)
    packed: Tensor = (stream.view(len(codes), -1, 8) * weights).sum(2).to(torch.uint8)
    return packed


def unpack(packed: Tensor, bits: int, n: int) -> Tensor:
    """The inverse of :func:`pack`: ``(rows, n)`` uint8 codes.

    Raises:
        ValueError: the rows do not have the length that n codes take.
    """
    if packed.shape[1] != -(-n * bits // 8):
        raise ValueError(f"{n} codes of {bits} bits do not take {packed.shape[1]} bytes")
    stream = ((packed.unsqueeze(2) >> torch.arange(8, device=packed.device)) & 1).flatten(1)
    stream = stream[:, : n * bits].reshape(len(packed), n, bits)
    codes: Tensor = (stream * 2 ** torch.arange(bits, device=packed.device)).sum(2)
    return codes.to(torch.uint8)
