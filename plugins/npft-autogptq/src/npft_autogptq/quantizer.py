"""The quantizer ``autogptq``: GPTQ (arXiv 2210.17323) by AutoGPTQ 0.7.1."""

from __future__ import annotations

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
from npft_autogptq import environment, exchange, process

WIDTHS = (2, 3, 4, 8)


class AutoGPTQ(Quantizer):
    """GPTQ by AutoGPTQ 0.7.1, which runs as a worker in an environment of its own.

    Layers are quantized in the order in which they run, each from what the quantized ones before
    it give on the calibration windows. A Hessian that is not positive definite is damped more, and
    a layer that GPTQ cannot solve is rounded to nearest; the result's notes name both.
    """

    name: ClassVar[str] = "autogptq"

    group_size: int = Field(0, ge=0, description="inputs per group; 0: one group per channel")
    sym: bool = Field(False, description="symmetric grid, its zero in the middle")
    desc_act: bool = Field(False, description="inputs of large activations first (act-order)")
    damp_percent: float = Field(
        0.01, gt=0, lt=1, description="added to the Hessian's diagonal, as a share of its mean"
    )
    environment: str = Field(
        "",
        description=f"folder of AutoGPTQ's environment; default: ${environment.VARIABLE}, or "
        "the user's cache",
    )

    @property
    def checkpoint_format(self) -> str:
        """The GPTQ v1 format."""
        return "gptq"

    def check(self, model: LanguageModel) -> None:
        """Refuse what AutoGPTQ or its environment cannot do.

        Raises:
            Unavailable: a width that AutoGPTQ lacks; layers that the group size does not divide;
                no environment, or a model that its transformers does not know.
        """
        self._python(model)

    def _python(self, model: LanguageModel) -> Path:
        if self.bits not in WIDTHS:
            raise Unavailable(f"autogptq has no {self.bits} bits: choose 2, 3, 4 or 8")
        super().check(model)
        return environment.require(self.environment, model.network.config.model_type)

    def quantize(
        self,
        model: LanguageModel,
        calibration: Iterable[Tensor],
        sensitivities: Mapping[str, Tensor] | None = None,
        progress: Progress | None = None,
    ) -> QuantizedModel:
        """See :meth:`npft.contracts.Quantizer.quantize`.

        Raises:
            Unavailable: see :meth:`check`; or the old transformers runs another model.
            NpftError: no calibration, no space for the job folder, or the worker stopped.
        """
        python = self._python(model)
        settings = self.model_dump(exclude={"environment"})
        notes: list[str] = []
        with tempfile.TemporaryDirectory(prefix="npft-autogptq-") as place:
            folder = Path(place)
            exchange.write(folder, model, calibration, settings)
            with closing(process.messages(python, folder)) as said:
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
    """The numbers of finished layers, as they come; notes are put aside."""
    for message in said:
        if "note" in message:
            notes.append(str(message["note"]))
        else:
            yield message["layer"]
