"""How to tune."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from npft.artifacts import LanguageModel
from npft.errors import NpftError
from npft.grid import Grid

_OF_NOISE = {"terms", "balance", "layers", "draw", "rescore", "noise_bits", "noise_group_size"}
_OF_SPEED = {"replay"}


class Tuning(BaseModel):
    """How to tune; every field is an option ``tuning.NAME``."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    epochs: int = Field(6, ge=1, description="passes over the calibration windows")
    lr: float = Field(5e-4, gt=0, description="peak learning rate of AdamW")
    batch_size: int = Field(4, ge=1, description="windows per step")
    rank: int = Field(64, ge=1, description="rank of the LoRA adapter")
    alpha: float = Field(
        128.0, gt=0, description="LoRA's alpha: the adapter is scaled by alpha/rank"
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout on the adapter's input")
    beta: float = Field(0.5, ge=0, description="weight of the clean loss in eq. 7")
    terms: Literal["both", "one"] = Field(
        "one",
        description="whether a step takes both terms of eq. 7, or one drawn with odds 1 : beta",
    )
    balance: bool = Field(
        True, description="divide each loss by its own size, so that every grid counts alike"
    )
    weight_decay: float = Field(0.0, ge=0, description="AdamW's weight decay")
    warmup: float = Field(0.05, ge=0, lt=1, description="share of the steps with rising rate")
    clip: float = Field(1.0, gt=0, description="largest gradient norm")
    layers: Literal["all", "attention", "mlp"] = Field("all", description="layers that get noise")
    draw: Literal["step", "epoch"] = Field("step", description="when noise is drawn anew")
    rescore: bool = Field(False, description="select the outliers anew before each epoch")
    restart: bool = Field(
        False, description="begin the optimizer and its schedule anew at each epoch"
    )
    adapter_skip: tuple[str, ...] = Field(
        (), description="layers whose last name is one of these get noise but no adapter"
    )
    norms: bool = Field(False, description="train the weights of the normalisations as well")
    compile: bool = Field(
        False, description="run the decoder blocks by torch.compile, which takes a while to start"
    )
    on_bad_step: Literal["stop", "skip"] = Field(
        "stop", description="what a loss or gradient that is NaN or infinite does"
    )
    noise_bits: tuple[int, ...] = Field(
        (4, 3), min_length=1, description="grids that the noise imitates, one drawn per step"
    )
    noise_group_size: int = Field(0, ge=0, description="group size of those grids, 0: per channel")
    replay: bool = Field(
        True,
        description="record the passes of a step as CUDA graphs where that is possible, which is "
        "faster and changes no number",
    )

    def grids(self) -> list[Grid]:
        """The target grids of the noise."""
        return [Grid(bits, self.noise_group_size) for bits in self.noise_bits]

    def with_noise(self) -> dict[str, Any]:
        """What training under noise depends on, ready for JSON."""
        return self.model_dump(mode="json", exclude=_OF_SPEED)

    def without_noise(self) -> dict[str, Any]:
        """What training without noise depends on, ready for JSON."""
        return self.model_dump(mode="json", exclude=_OF_SPEED | _OF_NOISE)

    def adapter_layers(self, model: LanguageModel) -> list[str]:
        """Names of the layers that get an adapter: those not named by ``adapter_skip``.

        Raises:
            NpftError: a name in ``adapter_skip`` is that of no layer, or no layer is left.
        """
        last = {name: name.rpartition(".")[2] for name in model.layers}
        known = list(dict.fromkeys(last.values()))
        for skipped in self.adapter_skip:
            if skipped not in known:
                raise NpftError(
                    f"tuning.adapter_skip names {skipped!r}, which is the last name of no layer: "
                    f"choose from {', '.join(known)}"
                )
        adapted = [name for name in model.layers if last[name] not in self.adapter_skip]
        if not adapted:
            raise NpftError(
                f"tuning.adapter_skip={list(self.adapter_skip)} leaves no layer with an adapter: "
                "name fewer layers"
            )
        return adapted
