"""The loop over the calibration windows, which can be left and taken up again at any epoch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict

import torch
from peft import PeftModel
from torch import Tensor, nn

from npft import data
from npft.artifacts import StepLoss
from npft.errors import NotFinite, NpftError
from npft.noise import Noise
from npft.progress import Progress
from npft.seeding import generator
from npft.terms import Terms
from npft.tuning import optimizer, state
from npft.tuning.settings import Tuning
from npft.tuning.state import Checkpoint, State


class Training:
    """An adapter on its way: everything that a step changes is in :meth:`state`."""

    def __init__(
        self,
        wrapped: PeftModel,
        terms: Terms,
        settings: Tuning,
        per_epoch: int,
        noise: Noise | None,
        random: torch.Generator,
    ) -> None:
        """Prepare the first step.

        Args:
            wrapped: peft's model, whose adapter is trained.
            terms: adds the gradients of a step.
            settings: how to tune.
            per_epoch: steps in an epoch.
            noise: on the base weights, None for the control.
            random: what ``terms`` draws from.
        """
        self.losses: list[StepLoss] = []
        self._adapter = {n: p for n, p in wrapped.named_parameters() if p.requires_grad}
        self._terms = terms
        self._settings = settings
        self._steps = per_epoch if settings.restart else per_epoch * settings.epochs
        self._noise = noise
        self._random = random
        self._optimizer, self._schedule = self._fresh()

    def begin_epoch(self, rescore: Callable[[Noise], None] | None) -> None:
        """What happens before each epoch but the first."""
        if self._settings.restart:
            self._optimizer, self._schedule = self._fresh()
        if self._noise is not None:
            self._noise.new_epoch()
            if rescore is not None and self._settings.rescore:
                rescore(self._noise)

    def step(self, tokens: Tensor) -> None:
        """One step on ``tokens (batch, context)``.

        Raises:
            NotFinite: a loss or a gradient is not, and such steps are not to be skipped.
        """
        number = len(self.losses)
        try:
            noisy, clean = (None if math.isnan(term) else term for term in self._terms(tokens))
            _clip(self._adapter, self._settings.clip)
        except NotFinite as error:
            if self._settings.on_bad_step == "stop":
                raise NotFinite(f"step {number}: {error}") from error
            self.losses.append(StepLoss(number, None, None, str(error)))
            self._optimizer.zero_grad()  # and the optimizer passes over what has no gradient
        else:
            self.losses.append(StepLoss(number, noisy, clean))
        self._optimizer.step()
        self._schedule.step()
        self._optimizer.zero_grad()

    def state(self) -> State | None:
        """Everything, after a whole epoch; None where the noise cannot tell what it remembers."""
        remembered = {} if self._noise is None else self._noise.state()
        if remembered is None:
            return None
        moments, groups = state.of_optimizer(self._optimizer)
        tensors = {
            **state.below("adapter", {n: p.detach() for n, p in self._adapter.items()}),
            **state.below("moments", moments),
            **state.below("noise", remembered),
            **state.below("random", state.of_global_random()),
            "terms": self._random.get_state(),
        }
        schedule = {k: v for k, v in self._schedule.state_dict().items() if k != "lr_lambdas"}
        numbers = {
            "groups": groups,
            "schedule": schedule,
            "losses": [asdict(loss) for loss in self.losses],
        }
        return State(tensors, numbers)

    def load_state(self, kept: State) -> None:
        """Go on where :meth:`state` was taken."""
        with torch.no_grad():
            for name, values in state.part("adapter", kept.tensors).items():
                self._adapter[name].copy_(values)
        moments = state.part("moments", kept.tensors)
        state.load_optimizer(self._optimizer, moments, kept.numbers["groups"])
        self._schedule.load_state_dict({**kept.numbers["schedule"], "lr_lambdas": [None]})
        if self._noise is not None:
            self._noise.load_state(state.part("noise", kept.tensors))
        state.load_global_random(state.part("random", kept.tensors))
        self._random.set_state(kept.tensors["terms"])
        self.losses = [StepLoss(**loss) for loss in kept.numbers["losses"]]

    def _fresh(self) -> tuple[torch.optim.AdamW, torch.optim.lr_scheduler.LambdaLR]:
        return optimizer.make(list(self._adapter.values()), self._settings, self._steps)


def train(
    training: Training,
    windows: Tensor,
    settings: Tuning,
    device: torch.device,
    seed: int,
    *,
    rescore: Callable[[Noise], None] | None,
    show: Progress,
    label: str,
    checkpoint: Checkpoint | None,
) -> None:
    """Take every step that ``training`` still lacks, and keep its state after each epoch.

    Raises:
        NotFinite: as :meth:`Training.step`.
        NpftError: every step was skipped.
    """
    per_epoch = math.ceil(len(windows) / settings.batch_size)
    total = per_epoch * settings.epochs
    kept = checkpoint.load() if checkpoint is not None else None
    if kept is not None:
        training.load_state(kept)
        done = len(training.losses) // per_epoch
        show.note(f"{label} goes on after epoch {done} of {settings.epochs}")
    first = len(training.losses)
    batches = _batches(windows, settings, seed, device, first // per_epoch)
    for number, tokens in enumerate(show.track(batches, label, total - first), first):
        if number > 0 and number % per_epoch == 0:
            state = training.state() if checkpoint is not None and number > first else None
            if checkpoint is not None and state is not None:
                checkpoint.save(state)
            training.begin_epoch(rescore)
        training.step(tokens)
    if all(loss.skipped is not None for loss in training.losses):
        raise NpftError(f"{label} skipped all its {total} steps: {training.losses[0].skipped}")


def _clip(adapter: dict[str, nn.Parameter], most: float) -> None:
    """Limit the norm of the gradients.

    Raises:
        NotFinite: one is NaN or infinite; its layer is named.
    """
    norm = float(torch.nn.utils.clip_grad_norm_(adapter.values(), most))
    if math.isfinite(norm):
        return
    for name, parameter in adapter.items():
        if parameter.grad is not None and not bool(parameter.grad.isfinite().all()):
            layer = name.removeprefix("base_model.model.").partition(".lora_")[0]
            raise NotFinite(
                f"the gradient of layer {layer} is not finite: lower tuning.lr or the noise, or "
                "tune in float32"
            )
    raise NotFinite(f"the norm of the gradients became {norm}: tune in float32")


def _batches(
    windows: Tensor, settings: Tuning, seed: int, device: torch.device, first: int
) -> Iterator[Tensor]:
    """Batches from epoch ``first`` on, shuffled anew each epoch."""
    shuffle = generator(seed, "order")
    for epoch in range(settings.epochs):
        order = torch.randperm(len(windows), generator=shuffle)
        if epoch >= first:
            yield from data.batches(windows[order], settings.batch_size, device)
