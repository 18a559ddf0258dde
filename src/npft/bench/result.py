"""What one bench found."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from npft.bench.measure import Agreement, Line
from npft.bench.timing import read_bandwidth
from npft.errors import NpftError


@dataclass
class Result:
    """What one bench found.

    Attributes:
        bandwidth: bytes per second that reading gets from memory.
        agreements: variant to how alike it and its dequantized float model are over 128 tokens.
        missing: rivals that were not measured, and why.
    """

    source: str
    bandwidth: float
    lines: list[Line] = field(default_factory=list)
    agreements: dict[str, Agreement] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        return {
            "source": self.source,
            "read_bandwidth": self.bandwidth,
            "rows": [line.as_row() for line in self.lines],
            "agreements": {name: asdict(one) for name, one in self.agreements.items()},
            "missing": self.missing,
            "environment": self.environment,
        }


def start(source: str) -> Result:
    """An empty result of this machine, its memory measured.

    Raises:
        NpftError: there is no GPU.
    """
    if not torch.cuda.is_available():
        raise NpftError(
            "npft bench measures a GPU, but torch sees no CUDA here: install a CUDA build of "
            "torch, or run it where there is a GPU"
        )
    return Result(source, read_bandwidth(), environment=dict(_environment()))


def _environment() -> Iterator[tuple[str, Any]]:
    properties = torch.cuda.get_device_properties(0)
    yield "gpu", properties.name
    yield "multiprocessors", properties.multi_processor_count
    yield "torch", torch.__version__
    yield "cuda", torch.version.cuda
    yield "python", platform.python_version()
