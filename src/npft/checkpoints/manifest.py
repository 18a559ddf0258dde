"""``quantization.json``: what npft made a checkpoint with."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from npft.artifacts import QuantizedModel

MANIFEST = "quantization.json"


@dataclass(frozen=True)
class Manifest:
    """What a table says of a checkpoint, beside its numbers."""

    quantizer: str
    bits: int
    group_size: int = 0
    format: str = "npft"
    variant: str = ""
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, quantized: QuantizedModel) -> Manifest:
        """The manifest of a quantized model."""
        return cls(**{field: getattr(quantized, field) for field in cls.__dataclass_fields__})

    @classmethod
    def read(cls, folder: Path, settings: dict[str, Any]) -> Manifest:
        """The manifest of a folder; of one that npft did not write, what ``settings`` tell."""
        file = folder / MANIFEST
        if not file.is_file():
            method, group = str(settings["quant_method"]), int(settings.get("group_size", 0))
            return cls(method, int(settings["bits"]), max(group, 0), method)
        known = json.loads(file.read_text(encoding="utf-8"))
        return cls(**{**known, "notes": tuple(known["notes"])})

    def write(self, folder: Path) -> None:
        """Write it into a folder."""
        text = json.dumps(asdict(self), indent=2) + "\n"
        (folder / MANIFEST).write_text(text, encoding="utf-8")
