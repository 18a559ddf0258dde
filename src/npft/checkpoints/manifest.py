"""``quantization.json``: what npft made a checkpoint with."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter

from npft.artifacts import QuantizedModel

MANIFEST = "quantization.json"

Word = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$", max_length=80)]
Variant = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.,%=+-]*$", max_length=80)]
"""Parts of the names of files, which therefore hold nothing that leads elsewhere."""


@dataclass(frozen=True)
class Manifest:
    """What a table says of a checkpoint, beside its numbers."""

    quantizer: Word
    bits: Annotated[int, Field(ge=2, le=8)]
    group_size: Annotated[int, Field(ge=0)] = 0
    format: Word = "npft"
    variant: Variant = ""
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, quantized: QuantizedModel) -> Manifest:
        """The manifest of a quantized model."""
        return cls(**{field: getattr(quantized, field) for field in cls.__dataclass_fields__})

    @classmethod
    def read(cls, folder: Path, settings: dict[str, Any]) -> Manifest:
        """The manifest of a folder; of one that npft did not write, what ``settings`` tell."""
        file = folder / MANIFEST
        if file.is_file():
            return _READER.validate_json(file.read_bytes())
        method, group = str(settings["quant_method"]), int(settings.get("group_size", 0))
        return cls(method, int(settings["bits"]), max(group, 0), method)

    def write(self, folder: Path) -> None:
        """Write it into a folder."""
        text = json.dumps(asdict(self), indent=2) + "\n"
        (folder / MANIFEST).write_text(text, encoding="utf-8")


_READER = TypeAdapter(Manifest)
