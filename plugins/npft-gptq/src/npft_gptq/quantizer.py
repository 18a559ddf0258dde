"""The quantizer ``gptq``: GPTQ (arXiv 2210.17323) by GPTQModel."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import ClassVar

from pydantic import Field
from torch import Tensor

from npft.artifacts import LanguageModel, PackedWeight, QuantizedModel
from npft.contracts import Quantizer
from npft.errors import Unavailable
from npft.progress import Progress, Silent
from npft_gptq import exchange, process

WIDTHS = (2, 3, 4, 8)
GROUPS = (0, 16, 32, 64, 128, 256, 512, 1024)
_WORD = 32
"""Bits of the words into which the GPTQ format packs codes."""


class GPTQ(Quantizer):
    """GPTQ by GPTQModel, which runs as a worker in a process of its own.

    The grid is the asymmetric one of ``rtn``, or with ``sym`` one with its zero in the middle. A
    group's scale is made when GPTQ reaches the group, from weights that already make up for the
    errors before it. Groups are visited in order of activation, and stay contiguous
    (GPTQModel's ``act_group_aware``); ``desc_act`` orders single inputs instead, which then need
    the index ``g_idx``.

    A Hessian that is not positive definite is damped more, and a layer that GPTQ cannot solve is
    rounded to nearest; the result's notes name both.
    """

    name: ClassVar[str] = "gptq"

    group_size: int = Field(0, ge=0, description="inputs per group; 0: one group per channel")
    sym: bool = Field(False, description="symmetric grid, its zero in the middle")
    desc_act: bool = Field(False, description="inputs of large activations first (act-order)")
    damp_percent: float = Field(
        0.05, gt=0, lt=1, description="added to the Hessian's diagonal, as a share of its mean"
    )

    @property
    def checkpoint_format(self) -> str:
        """The GPTQ v1 format."""
        return "gptq"

    def check(self, model: LanguageModel) -> None:
        """Refuse what GPTQModel or the GPTQ format cannot do.

        Raises:
            Unavailable: no GPTQModel; a width or group size that it lacks; layers whose shape the
                format cannot pack; a model whose code is not part of transformers.
        """
        if importlib.util.find_spec("gptqmodel") is None:
            raise Unavailable("gptq needs GPTQModel: run pip install 'gptqmodel>=7.6,<8'")
        if self.bits not in WIDTHS:
            raise Unavailable(f"gptq has no {self.bits} bits: choose 2, 3, 4 or 8")
        super().check(model)
        if self.group_size not in GROUPS:
            raise Unavailable(
                f"gptq has no group_size={self.group_size}: choose 16, 32, 64, 128, 256, 512 or "
                "1024, or 0 for one group per output channel"
            )
        if not type(model.network).__module__.startswith("transformers."):
            raise Unavailable(
                f"gptq cannot quantize a {type(model.network).__name__}, whose code is not part of "
                "transformers: use rtn or kmeans"
            )
        self._check_packing(model)

    def _check_packing(self, model: LanguageModel) -> None:
        for name, layer in model.layers.items():
            for count, what in ((layer.in_features, "inputs"), (layer.out_features, "outputs")):
                if count * self.bits % _WORD:
                    raise Unavailable(
                        f"gptq cannot pack the {count} {what} of {name} at {self.bits} bits, as "
                        f"they fill no whole number of {_WORD}-bit words: choose other bits"
                    )

    def quantize(
        self,
        model: LanguageModel,
        calibration: Iterable[Tensor],
        sensitivities: Mapping[str, Tensor] | None = None,
        progress: Progress | None = None,
    ) -> QuantizedModel:
        """See :meth:`npft.contracts.Quantizer.quantize`.

        Raises:
            Unavailable: see :meth:`check`; or GPTQModel does not quantize all of the layers.
            NpftError: no calibration, no space for the job folder, or the worker stopped.
        """
        self.check(model)
        notes: list[str] = []
        with tempfile.TemporaryDirectory(prefix="npft-gptq-") as place:
            folder = Path(place)
            exchange.write(folder, model, calibration, self.model_dump())
            with closing(process.messages(folder)) as said:
                done = _layers_done(said, notes)
                label = f"quantize {self.label}"
                for _ in (progress or Silent()).track(done, label, len(model.layers)):
                    pass
            runnable = model.copy()
            weights: dict[str, PackedWeight] = {}
            for name, packed in exchange.read(folder, runnable, self.bits, self.group_size):
                weights[name] = packed
                runnable.layers[name].weight.copy_(packed.dequantize())
        return QuantizedModel(
            runnable,
            weights,
            self.name,
            self.bits,
            self.group_size,
            format=self.checkpoint_format,
            notes=tuple(notes),
        )


def _layers_done(said: Iterable[dict[str, object]], notes: list[str]) -> Iterator[object]:
    """The names of finished layers, as they come; what is worth a note is put aside."""
    for message in said:
        if "note" in message:
            notes.append(str(message["note"]))
        else:
            yield message["layer"]
