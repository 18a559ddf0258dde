"""any-precision-llm's products: a table of values for every row, in float16.

Its kernels, the module ``any_precision_ext``, are built from ``any_precision/modules/kernels`` of
https://github.com/SNU-ARC/any-precision-llm. They start in CUDA's default stream, whatever stream
is current, so no graph captures them.
"""

from __future__ import annotations

from functools import partial

import torch

from npft.bench.rivals.rival import Matrix, Rival


def _make(bits: int, rows: int, columns: int) -> Matrix:
    import any_precision_ext

    # One plane of 32 columns per word for every bit of a code.
    size, high = (bits, rows, columns // 32), 2**31
    planes = torch.empty(size, dtype=torch.int32, device="cuda").random_(-high, high - 1)
    tables = (torch.randn(rows, 2**bits, device="cuda") * columns**-0.5).half().sort(1).values

    return Matrix(
        lambda x, _: any_precision_ext.matmul_kbit(x, planes, tables, bits),
        lambda: any_precision_ext.dequant_kbit(planes, tables, bits),
    )


ANY_PRECISION = tuple(
    Rival(
        f"any-precision {bits}-bit, float16, no graph",
        "any_precision_ext",
        bits / 8,
        partial(_make, bits),
        bytes_per_row=2.0 * 2**bits,
        dtype=torch.float16,
        graphed=False,
    )
    for bits in (4, 3)
)
