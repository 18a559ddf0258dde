"""What the score stage leaves in ``scores/``, read again and held against the model."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from npft.artifacts import LinearLayer, Outliers
from npft.errors import NpftError, in_one_line
from npft.evaluation.most_sensitive import MostSensitive
from npft.outliers import Scope

Layers = Mapping[str, LinearLayer]

# RuntimeError is torch's, of shapes with more than 64 dimensions.
_UNREADABLE = (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError)


def outliers(file: Path, layers: Layers, device: str) -> tuple[dict[str, Outliers], float, Scope]:
    """The positions of each layer, gamma, and where its top was taken.

    Raises:
        NpftError: the file is broken, or is of another model.
    """
    with _telling(file), safe_open(file, framework="pt", device=device) as stored:
        about = _about(stored)
        gamma = float(about["gamma"])
        _require(0 < gamma <= 1, f"its gamma is {gamma}")
        everything = json.loads(about["everything"])
        scope: Scope = "model" if about.get("scope") == "model" else "matrix"
        chosen = {}
        for name, layer in layers.items():
            shape = (layer.out_features, layer.in_features)
            positions = None if name in everything else stored.get_tensor(name)
            if positions is not None:
                _check_positions(name, positions, shape)
            chosen[name] = Outliers(shape, positions)
        return chosen, gamma, scope


def sensitivities(file: Path, layers: Layers, device: str) -> dict[str, Tensor]:
    """The sensitivities ``(out, in)`` of each layer.

    Raises:
        NpftError: the file is broken, or is of another model.
    """
    found = {}
    with _telling(file), safe_open(file, framework="pt", device=device) as stored:
        for name, layer in layers.items():
            values = found[name] = stored.get_tensor(name)
            fine = values.shape == layer.shape and values.dtype == torch.float32
            _require(fine, f"{name} is {_kind(values)}, no float32 of the layer's shape")
            fine = bool((values.isfinite() & (values >= 0)).all())
            _require(fine, f"{name} has sensitivities that are negative or not finite")
    return found


def most_sensitive(file: Path, layers: Layers) -> MostSensitive:
    """The most sensitive weights of each layer.

    Raises:
        NpftError: the file is broken, or is of another model.
    """
    with _telling(file):
        found = MostSensitive.load(file)
        _require(math.isfinite(found.total), "its total is not finite")
        _require(
            layers.keys() == found.positions.keys() == found.values.keys(),
            "its layers are not the model's",
        )
        for name, layer in layers.items():
            positions, values = found.positions[name], found.values[name]
            _check_positions(name, positions, (layer.out_features, layer.in_features))
            fine = values.dtype == torch.float32 and bool(values.isfinite().all())
            _require(fine and values.shape == positions.shape, f"{name} has other values")
            _require(len(positions) > 0, f"{name} has no positions")
        return found


def _check_positions(name: str, positions: Tensor, shape: tuple[int, int]) -> None:
    fine = positions.dtype == torch.int64 and positions.dim() == 1
    _require(fine, f"{name} is {_kind(positions)}, no list of int64")
    if positions.numel():
        inside = int(positions[0]) >= 0 and int(positions[-1]) < shape[0] * shape[1]
        rising = bool((positions.diff() > 0).all())
        _require(inside and rising, f"{name} has positions outside its matrix or out of order")


def _about(stored: Any) -> dict[str, str]:
    about: dict[str, str] | None = stored.metadata()
    _require(about is not None, "it has no metadata")
    assert about is not None
    return about


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _require(fine: bool, what: str) -> None:
    if not fine:
        raise ValueError(what)


@contextmanager
def _telling(file: Path) -> Iterator[None]:
    try:
        yield
    except _UNREADABLE as error:
        raise NpftError(
            f"{str(file)!r} does not hold scores of this model ({in_one_line(error)}): run npft "
            "score again"
        ) from error
