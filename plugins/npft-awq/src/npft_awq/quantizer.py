"""The quantizer ``awq``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from npft.artifacts import LanguageModel, PackedWeight, QuantizedModel, UniformWeight
from npft.contracts import Quantizer
from npft.errors import NpftError
from npft.grid import Grid
from npft.progress import Progress, Silent
from npft_awq import blocks, clipping, scaling, structure
from npft_awq.blocks import Block, Stream
from npft_awq.rounding import packed
from npft_awq.structure import Group

PROBE_TOKENS = 32
"""How much text shows which layers belong together."""


class AWQ(Quantizer):
    """Activation-aware weight quantization (Lin et al., arXiv 2306.00978).

    Inputs of large magnitude get a larger share of the grid: before rounding, each group of layers
    that read the same tensor has its inputs multiplied by scales, which the norm or linear layer
    before it is divided by, so that the float function stays the same. Then each group of weights
    is clipped to its best range, in all layers but those that make queries and keys.
    """

    name: ClassVar[str] = "awq"

    group_size: int = Field(64, ge=0, description="inputs per group; 0: one group per channel")
    grid: int = Field(20, ge=1, description="how many values of alpha to try for each scale")
    clip: bool = Field(True, description="search for a clipping range")
    samples: int = Field(16, ge=1, description="calibration windows to use, at most")
    format: Literal["awq", "npft"] = Field(
        "awq", description="of checkpoints; awq is its layout GEMM, of 4 bits and no Conv1D"
    )

    @torch.no_grad()
    def quantize(
        self,
        model: LanguageModel,
        calibration: Iterable[Tensor],
        sensitivities: Mapping[str, Tensor] | None = None,
        progress: Progress | None = None,
    ) -> QuantizedModel:
        """See :meth:`npft.contracts.Quantizer.quantize`.

        Raises:
            NpftError: no calibration windows, or weights that no 16-bit scale holds.
            Unavailable: the model's blocks do not hand their output straight to the next.
        """
        self.check(model)
        batches = list(_windows(calibration, self.samples))
        if not batches:
            raise NpftError("awq has no calibration windows to look at: give it some")
        runnable = model.copy()
        chain = blocks.split(runnable)
        stream = Stream(runnable, chain, batches)
        probe = Stream(runnable, chain, [batches[0][:1, :PROBE_TOKENS]])
        weights: dict[str, PackedWeight] = {}
        notes: list[str] = []
        shown = (progress or Silent()).track(chain, f"quantize {self.label}", len(chain))
        for block in shown:
            weights |= self._quantize_block(block, stream, probe, notes)
        in_order = {name: weights[name] for name in runnable.layers}
        return QuantizedModel(
            runnable,
            in_order,
            self.name,
            self.bits,
            self.group_size,
            format=self.checkpoint_format,
            notes=tuple(notes),
        )

    def _quantize_block(
        self, block: Block, stream: Stream, probe: Stream, notes: list[str]
    ) -> Iterator[tuple[str, UniformWeight]]:
        """Scale, clip and round one block, and pass it; gives the weights by their whole names."""
        target = Grid(self.bits, self.group_size)
        groups = structure.find_groups(block, probe.calls(block)[0])
        for group in groups:
            self._scale(block, group, stream, notes)
        for name in sorted(set(block.layers) - {n for group in groups for n in group.layers}):
            groups.append(Group((name,), None))
            notes.append(
                f"the first {PROBE_TOKENS} calibration tokens do not reach {block.name}.{name}: "
                "not scaled"
            )
        calls = stream.calls(block)
        moments = clipping.second_moments(block, groups, calls, target) if self.clip else {}
        stream.advance(block)
        probe.advance(block)
        for name, layer in block.layers.items():
            weight = layer.weight.float()
            if name in moments and clipping.clippable(name):
                weight = clipping.clipped(weight, moments[name], target)
            stored = packed(weight, target)
            layer.weight.copy_(stored.dequantize())
            yield f"{block.name}.{name}", stored

    def _scale(self, block: Block, group: Group, stream: Stream, notes: list[str]) -> None:
        """Find a group's scales, and move them from what absorbs them to the group's weights."""
        if group.absorber is None:
            return
        target = Grid(self.bits, self.group_size)
        scales = scaling.search(block, group, stream.calls(block), target, self.grid)
        if scales is None:
            notes.append(
                f"the output of {block.name} overflows on the calibration windows: "
                f"{', '.join(group.layers)} not scaled"
            )
            return
        group.absorber.divide(block, scales)
        group.multiply(block, scales)


def _windows(calibration: Iterable[Tensor], most: int) -> Iterator[Tensor]:
    """The batches that hold the first ``most`` windows, the last one cut."""
    for batch in calibration:
        yield batch[:most]
        most -= len(batch)
        if most <= 0:
            return
