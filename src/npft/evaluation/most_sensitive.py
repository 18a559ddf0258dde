"""The most sensitive weights of a model, followed through tuning (Figure 3 of NPFT)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from npft.artifacts import Channel, LanguageModel, Sensitivity

SHARE = 0.0005
"""Of each matrix: the paper's 0.05%."""

RANGES = 64
"""Into how many ranges the input channels of a layer are divided."""


@dataclass
class MostSensitive:
    """The most sensitive weights of each layer.

    Attributes:
        positions: flat positions in ``(out, in)``, ascending, int64 on the CPU, by layer.
        values: their sensitivities, float32.
        total: the sum of all sensitivities.
    """

    positions: dict[str, Tensor] = field(default_factory=dict)
    values: dict[str, Tensor] = field(default_factory=dict)
    total: float = 0.0

    def watch(self, scores: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """A scorer's stream, unchanged, noted while it passes."""
        for name, values in scores:
            flat = values.flatten()
            chosen = flat.topk(max(1, round(SHARE * flat.numel()))).indices.sort().values
            self.positions[name] = chosen.cpu()
            self.values[name] = flat[chosen].cpu()
            self.total += float(flat.sum(dtype=torch.float64))
            del flat
            yield name, values
            del values  # before the scorer makes the next

    def save(self, file: Path) -> None:
        """Write to one safetensors file."""
        parts = {f"{name}.positions": values for name, values in self.positions.items()}
        parts |= {f"{name}.values": values for name, values in self.values.items()}
        about = {"total": repr(self.total), "layers": json.dumps(list(self.positions))}
        save_file(parts, file, metadata=about)

    @classmethod
    def load(cls, file: Path) -> MostSensitive:
        """What :meth:`save` wrote."""
        with safe_open(file, framework="pt") as stored:
            about = stored.metadata()
            found = cls(total=float(about["total"]))
            for name in json.loads(about["layers"]):  # in their order, as sums depend on it
                found.positions[name] = stored.get_tensor(f"{name}.positions")
                found.values[name] = stored.get_tensor(f"{name}.values")
        return found


def compare(
    model: LanguageModel, before: MostSensitive, after: Iterable[tuple[str, Tensor]]
) -> Sensitivity:
    """The weights that were the most sensitive, and what has become of them.

    Args:
        model: whose layers they are.
        after: a scorer's stream of the tuned model.
    """
    now: dict[str, Tensor] = {}
    total = 0.0
    for name, values in after:
        now[name] = values.flatten()[before.positions[name].to(values.device)].cpu()
        total += float(values.sum(dtype=torch.float64))
    return Sensitivity(
        share=SHARE,
        before=_sum(before.values),
        after=_sum(now),
        total_before=before.total,
        total_after=total,
        channels=list(_fullest(model, before, now)),
        places={
            name: _ranges(
                positions % model.layers[name].in_features, model.layers[name].in_features
            )
            for name, positions in before.positions.items()
        },
    )


def _sum(values: Mapping[str, Tensor]) -> float:
    return sum(float(part.sum(dtype=torch.float64)) for part in values.values())


def _ranges(inputs: Tensor, width: int) -> list[int]:
    """How many of ``inputs``, below ``width``, are in each range."""
    counts: list[int] = torch.bincount(inputs * RANGES // width, minlength=RANGES).tolist()
    return counts


def _fullest(
    model: LanguageModel, before: MostSensitive, now: Mapping[str, Tensor]
) -> Iterator[Channel]:
    """The input channel with the most of the weights, of all attention and of all MLP layers."""
    fullest: dict[str, tuple[int, str, int]] = {}
    for name, positions in before.positions.items():
        layer = model.layers[name]
        counts = torch.bincount(positions % layer.in_features)
        most = int(counts.max())
        if most > fullest.get(layer.kind, (0, "", 0))[0]:
            fullest[layer.kind] = (most, name, int(counts.argmax()))
    for _, name, channel in fullest.values():
        width = model.layers[name].in_features
        here = before.positions[name] % width == channel
        yield Channel(
            name,
            channel,
            (before.positions[name][here] // width).tolist(),
            before.values[name][here].tolist(),
            now[name][here].tolist(),
        )
