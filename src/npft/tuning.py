"""Noise perturbation fine-tuning: an adapter learns while the base weights are shaken (eq. 7)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Literal

import torch
from peft import PeftModel
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from npft import data
from npft.adapters import Adapter, attached, extract, trainable
from npft.artifacts import LanguageModel, Outliers, StepLoss
from npft.contracts import Objective, Sampler
from npft.errors import NpftError
from npft.grid import Grid
from npft.noise import Noise
from npft.progress import Progress, Silent
from npft.seeding import generator, isolated_rng
from npft.terms import BothTerms, NoNoise, OneTerm, Student, Terms, balanced, plain

Rescore = Callable[[LanguageModel], Mapping[str, Outliers]]


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
    noise_bits: tuple[int, ...] = Field(
        (4, 3), min_length=1, description="grids that the noise imitates, one drawn per step"
    )
    noise_group_size: int = Field(0, ge=0, description="group size of those grids, 0: per channel")

    def grids(self) -> list[Grid]:
        """The target grids of the noise."""
        return [Grid(bits, self.noise_group_size) for bits in self.noise_bits]

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


def tune(
    model: LanguageModel,
    windows: Tensor,
    outliers: Mapping[str, Outliers],
    sampler: Sampler,
    objective: Objective,
    settings: Tuning,
    *,
    seed: int = 0,
    sensitivities: Mapping[str, Tensor] | None = None,
    rescore: Rescore | None = None,
    progress: Progress | None = None,
) -> Adapter:
    r"""Train an adapter under fresh noise at every step (eq. 7).

    .. math:: \min_{U,V} L(W + z_i + UV) + \beta L(W + UV)

    The noise z is added to the base weights only, so that the adapter's gradient is exact, and
    the weights are put back bit for bit after every step.

    Args:
        model: the float model; the same, bit for bit, when this returns.
        windows: ``(n, context)`` calibration token ids.
        outliers: positions that get noise, per layer.
        sensitivities: ``(out, in)`` per layer, if the sampler needs them.
        rescore: called before each epoch after the first if ``settings.rescore``, with the model
            as adapted so far.

    Returns:
        The adapter and the losses of each step.

    Raises:
        NpftError: the loss became NaN or infinite.
    """
    if sampler.needs_sensitivity and sensitivities is None:
        raise NpftError(f"sampler {sampler.name!r} needs the sensitivities of the weights")
    noise = Noise(
        sampler,
        outliers,
        settings.grids(),
        generator(seed, "noise", model.device),
        sensitivities=sensitivities,
        layers=settings.layers,
        keep=settings.draw == "epoch",
    )
    return _train(model, windows, noise, objective, settings, seed, rescore, progress, "tune")


def control(
    model: LanguageModel,
    windows: Tensor,
    objective: Objective,
    settings: Tuning,
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> Adapter:
    """The honest baseline: the same adapter, data and steps, with no noise at all."""
    return _train(model, windows, None, objective, settings, seed, None, progress, "control")


def _train(
    model: LanguageModel,
    windows: Tensor,
    noise: Noise | None,
    objective: Objective,
    settings: Tuning,
    seed: int,
    rescore: Rescore | None,
    progress: Progress | None,
    label: str,
) -> Adapter:
    show = progress or Silent()
    losses: list[StepLoss] = []
    per_epoch = math.ceil(len(windows) / settings.batch_size)
    with (
        attached(
            model,
            settings.adapter_layers(model),
            rank=settings.rank,
            alpha=settings.alpha,
            dropout=settings.dropout,
            seed=seed,
        ) as (wrapped, adapted),
        isolated_rng(seed, "dropout"),
        torch.enable_grad(),
    ):
        steps = per_epoch if settings.restart else per_epoch * settings.epochs
        optimizer, schedule = _optimizer(wrapped, settings, steps)
        wrapped.eval()
        step = _terms(settings, Student(wrapped, adapted, objective, noise), noise, seed)
        order = _batches(windows, settings, seed, model.device)
        epoch = 0
        for number, (new_epoch, tokens) in enumerate(
            show.track(order, label, per_epoch * settings.epochs)
        ):
            if new_epoch != epoch:
                epoch = new_epoch
                if settings.restart:
                    optimizer, schedule = _optimizer(wrapped, settings, steps)
                if noise is not None:
                    noise.new_epoch()
                    if rescore is not None and settings.rescore:
                        noise.outliers = rescore(adapted)
            noisy, clean = (None if math.isnan(term) else term for term in step(tokens))
            losses.append(StepLoss(number, noisy, clean))
            torch.nn.utils.clip_grad_norm_(trainable(wrapped), settings.clip)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        return extract(wrapped, losses)


def _terms(settings: Tuning, student: Student, noise: Noise | None, seed: int) -> Terms:
    scale = balanced if settings.balance else plain
    if noise is None:
        return NoNoise(student, settings.beta)
    if settings.terms == "one":
        return OneTerm(student, settings.beta, scale, generator(seed, "terms"))
    return BothTerms(student, settings.beta, scale)


def _optimizer(
    wrapped: PeftModel, settings: Tuning, steps: int
) -> tuple[torch.optim.AdamW, torch.optim.lr_scheduler.LambdaLR]:
    """AdamW on the adapter, with a schedule that reaches zero after ``steps``."""
    optimizer = torch.optim.AdamW(
        trainable(wrapped), lr=settings.lr, weight_decay=settings.weight_decay
    )
    return optimizer, torch.optim.lr_scheduler.LambdaLR(
        optimizer, _linear_schedule(settings, steps)
    )


def _linear_schedule(settings: Tuning, steps: int) -> Callable[[int], float]:
    """Rise over the warm-up share of the steps, then fall to zero, both linearly."""
    rising = max(1, round(settings.warmup * steps))

    def factor(step: int) -> float:
        if step < rising:
            return (step + 1) / rising
        return (steps - step) / max(1, steps - rising)

    return factor


def _batches(
    windows: Tensor, settings: Tuning, seed: int, device: torch.device
) -> Iterable[tuple[int, Tensor]]:
    """``(epoch, tokens)``, shuffled anew each epoch."""
    shuffle = generator(seed, "order")
    for epoch in range(settings.epochs):
        order = torch.randperm(len(windows), generator=shuffle)
        for tokens in data.batches(windows[order], settings.batch_size, device):
            yield epoch, tokens
