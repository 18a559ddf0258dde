"""The tensors of one quantized layer in a checkpoint, checked as they are taken."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from npft.errors import NpftError

WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class Stored:
    """What a checkpoint has of the layer ``name``, whose weight has ``shape = (out, in)``."""

    name: str
    shape: tuple[int, int]
    tensors: Mapping[str, Tensor]

    def __contains__(self, suffix: str) -> bool:
        return suffix in self.tensors

    def take(self, suffix: str, shape: tuple[int, ...], *dtypes: torch.dtype) -> Tensor:
        """The tensor ``NAME.suffix``.

        Raises:
            NpftError: it is missing, or has another shape or type.
        """
        if suffix not in self.tensors:
            raise NpftError(f"{self.name}.{suffix} is missing")
        found = self.tensors[suffix]
        if tuple(found.shape) != shape or found.dtype not in dtypes:
            kinds = " or ".join(_short(dtype) for dtype in dtypes)
            raise NpftError(
                f"{self.name}.{suffix} is {_short(found.dtype)} {list(found.shape)} where the "
                f"model needs {kinds} {list(shape)}"
            )
        return found

    def require(self, fine: bool, what: str) -> None:
        """Refuse contents of the right shape that mean nothing.

        Raises:
            NpftError: not ``fine``; ``what`` goes on after the layer's name.
        """
        if not fine:
            raise NpftError(f"{self.name} {what}")


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
