"""FLUTE's products: codes into one table of values, scaled by groups (flute-kernel 0.4)."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from npft.bench.rivals.rival import GROUP, Matrix, Rival


def _make(bits: int, rows: int, columns: int) -> Matrix:
    import flute.tune
    import flute.utils

    like = torch.zeros(1, columns, dtype=torch.bfloat16, device="cuda")
    codes = torch.randint(2**bits, (columns, rows), dtype=torch.uint8, device="cuda")
    table = torch.randn(2**bits, dtype=like.dtype, device="cuda").sort().values
    pairs = flute.utils.make_qmap2_from_qmap(table)
    scales = (torch.rand(rows, columns // GROUP, device="cuda") + 0.5) * columns**-0.5
    scales = scales.to(like.dtype)
    # The fastest of the library's templates, which it looks for once per shape.
    packed, chosen = flute.tune.tune_and_pack(
        like, codes, bits, GROUP, num_seeds=1, check_correctness=False
    )
    space = flute.utils.get_workspace_streamk(like.device)
    kind = (bits, GROUP, chosen.template_id, chosen.num_sms)

    def dense() -> Tensor:
        return torch.mul(table[codes.T.int()].float(), scales.repeat_interleave(GROUP, 1))

    return Matrix(lambda x, _: flute.qgemm(x, packed, scales, table, pairs, space, *kind), dense)


FLUTE = tuple(
    Rival(
        f"FLUTE {bits}-bit, groups of {GROUP}",
        "flute",
        bits / 8 + 2 / GROUP,
        partial(_make, bits),
    )
    for bits in (4, 3)
)
