"""One quantized layer in a file of its own, in npft's own format."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from npft.artifacts import PackedWeight
from npft.checkpoints.npft import VERSION, NpftFormat, entry_of
from npft.checkpoints.stored import Stored
from npft.errors import NpftError, in_one_line

_NAME = "layer"


def save_layer(weight: PackedWeight, file: Path) -> None:
    """Write a quantized layer."""
    about = {"version": VERSION, "layers": {_NAME: entry_of(weight)}, "shape": weight.shape}
    tensors = {
        name: values.cpu().contiguous() for name, values in NpftFormat().pack(weight, about).items()
    }
    save_file(tensors, file, metadata={"about": json.dumps(about)})


def load_layer(file: Path) -> PackedWeight:
    """What :func:`save_layer` wrote, on the CPU.

    Raises:
        NpftError: the file is something else.
    """
    try:
        with safe_open(file, framework="pt") as stored:
            about = json.loads(stored.metadata()["about"])
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        shape = (int(about["shape"][0]), int(about["shape"][1]))
        return NpftFormat().unpack(Stored(_NAME, shape, tensors), about)
    except (SafetensorError, NpftError, ValueError, KeyError, TypeError) as error:
        raise NpftError(
            f"{str(file)!r} holds no quantized layer ({in_one_line(error)}): remove it"
        ) from error
