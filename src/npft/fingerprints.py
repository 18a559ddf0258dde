"""Short names for contents: the same for the same content, in every process and on every device."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from npft.artifacts import LanguageModel

_BYTES = 8


def of_values(values: Mapping[str, Any]) -> str:
    """Of what JSON can hold."""
    text = json.dumps(values, sort_keys=True)
    return blake2b(text.encode(), digest_size=_BYTES).hexdigest()


def of_tensor(values: Tensor) -> str:
    """Of shape, type and every bit of a tensor."""
    return _of_tensors([("", values)])


def of_model(model: LanguageModel) -> str:
    """Of every parameter and saved buffer of a model, bit by bit."""
    return _of_tensors(model.tensors())


def of_files(folder: Path) -> str:
    """Of every file in a folder, and in those below it."""
    digest = blake2b(digest_size=_BYTES)
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(f"{file.relative_to(folder)}\n{file.stat().st_size}\n".encode())
        with file.open("rb") as stream:
            while block := stream.read(2**20):
                digest.update(block)
    return digest.hexdigest()


def looks_like_one(value: object) -> bool:
    """Whether a value reads like a fingerprint, which says nothing to people."""
    return isinstance(value, str) and re.fullmatch(rf"[0-9a-f]{{{2 * _BYTES}}}", value) is not None


def _of_tensors(tensors: Iterable[tuple[str, Tensor]]) -> str:
    digest = blake2b(digest_size=_BYTES)
    for name, values in tensors:
        digest.update(f"{name}\n{values.dtype}\n{list(values.shape)}\n".encode())
        flat = values.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()
