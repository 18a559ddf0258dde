"""What runs in a rival's own process.

It reads a job, the arguments of :func:`main`, and writes an answer to a file: a line of the table,
or what the library says against it.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from npft.bench import measure
from npft.bench.rivals.every import RIVALS
from npft.bench.rivals.rival import Rival, check
from npft.bench.shapes import matrices, random_weights, shape_named
from npft.errors import in_one_line


@torch.no_grad()
def line(rival: Rival, shape_name: str, bandwidth: float, replays: int) -> measure.Line:
    """All linear layers of one token, once products of each size are found right.

    Raises:
        NpftError: one is wrong.
    """
    shape = shape_named(shape_name)
    for rows, columns in set(matrices(shape).values()):
        check(rival, rows, columns)
    weights = random_weights(shape, rival.product, rival.dtype)
    size = rival.size(shape)
    return measure.linear(rival.name, weights, size, bandwidth, replays, rival.times)


def main(name: str, shape: str, bandwidth: float, replays: int, answer: str) -> None:
    """Measure one rival, and write the answer."""
    if torch.cuda.is_available():
        torch.cuda.init()  # before a library that is imported orders the GPUs in its own way
    try:
        found = line(RIVALS[name], shape, bandwidth, replays)
        told: dict[str, Any] = {"line": asdict(found)}
    except (Exception, SystemExit) as error:  # whatever another library raises is its answer
        told = {"error": in_one_line(error, 400)}
    Path(answer).write_text(json.dumps(told), encoding="utf-8")


if __name__ == "__main__":
    main(**json.load(sys.stdin))
