"""The objective ``tskd``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field
from torch import Tensor

from npft.contracts import Loss, Objective
from npft.losses import sequence_losses
from npft_tskd.course import Course
from npft_tskd.loss import softened
from npft_tskd.schedule import Schedule


class TSKD(Objective):
    r"""Temporal supervised distillation (Wang et al., arXiv 2307.00811), by the original model.

    .. math:: c \cdot \mathrm{CE} + T^2\, \mathrm{KL}_T(\text{original}\, \|\, \text{student})
              + w \sum_s \mathrm{MSE}_s

    The student is the perturbed model, the teacher the original one, a stage the hidden states
    after one of its blocks, and an attention map tells how large they are at each token. Memory
    and review epochs take turns over the passes through the calibration windows. The paper has
    c = 1, T = 4 and w = 1; here the text's own labels count for nothing by default, for the
    original model is what is to be kept.
    """

    name: ClassVar[str] = "tskd"
    needs_original: ClassVar[bool] = True
    needs_hidden_states: ClassVar[bool] = True

    weight: float = Field(1.0, ge=0, description="weight of the reviews, w")
    temperature: float = Field(1.0, gt=0, description="of the softened predictions, T")
    cross_entropy: float = Field(0.0, ge=0, description="weight of the text's own tokens, c")
    stages: int = Field(4, ge=1, description="blocks whose hidden states count, evenly spread")
    interval: int = Field(1, ge=1, description="epochs from one memory or review to the next")
    memories: int = Field(2, ge=1, description="memories that each review looks back on")
    sink: int = Field(1, ge=0, description="tokens at the start of each window left out of maps")
    hidden: int = Field(8, ge=1, description="channels of each Conv-LSTM")
    fits: int = Field(10, ge=0, description="steps that the Conv-LSTMs learn in each review step")
    lr: float = Field(1e-2, gt=0, description="the Conv-LSTMs' learning rate, of Adam")

    def begin(self, seed: int) -> Loss:
        return _Begun(self, seed)

    def loss(self, student: Any, tokens: Tensor, original: Any | None) -> Tensor:
        return self.begin(0).loss(student, tokens, original)


class _Begun:
    """The losses of one tuning."""

    def __init__(self, options: TSKD, seed: int) -> None:
        self._options = options
        self._course = Course(
            Schedule(options.interval, options.memories),
            stages=options.stages,
            sink=options.sink,
            hidden=options.hidden,
            fits=options.fits,
            lr=options.lr,
            seed=seed,
        )

    def new_epoch(self, epoch: int) -> None:
        self._course.epoch = epoch

    def loss(self, student: Any, tokens: Tensor, original: Any | None) -> Tensor:
        assert original is not None
        options = self._options
        total = softened(student.logits, original.logits, options.temperature)
        if options.cross_entropy:
            labels = sequence_losses(student.logits, tokens).mean()
            total = total + options.cross_entropy * labels
        supervised = self._course(tokens, student.hidden_states, original.hidden_states)
        return total + options.weight * supervised

    def state_dict(self) -> dict[str, Tensor]:
        return self._course.state()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self._course.load_state(state)
