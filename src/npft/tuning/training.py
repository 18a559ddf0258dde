"""The loop over the calibration windows, which can be left and taken up again at any epoch."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import torch
from peft import PeftModel
from pydantic import TypeAdapter
from torch import Tensor, nn

from npft import data
from npft.artifacts import StepLoss
from npft.contracts import Loss
from npft.errors import NotFinite, NpftError, in_one_line
from npft.noise import Noise
from npft.processes import Processes
from npft.progress import Progress
from npft.seeding import generator
from npft.terms import Terms
from npft.tuning import optimizer, state
from npft.tuning.late import Late, Told
from npft.tuning.settings import Tuning
from npft.tuning.state import Checkpoint, State


class Training:
    """An adapter on its way: everything that a step changes is in :meth:`state`."""

    def __init__(
        self,
        wrapped: PeftModel,
        terms: Terms,
        forget: Callable[[], None],
        objective: Loss,
        settings: Tuning,
        per_epoch: int,
        noise: Noise | None,
        random: torch.Generator,
        first_bad_layer: Callable[[Tensor], str],
        processes: Processes,
    ) -> None:
        """Prepare the first step.

        Args:
            wrapped: peft's model, whose adapter is trained.
            terms: adds the gradients of a step.
            forget: lets them start from nothing again.
            objective: whose losses these are, as begun for this training.
            settings: how to tune.
            per_epoch: steps in an epoch.
            noise: on the base weights, None for the control.
            random: what ``terms`` draws from.
            first_bad_layer: where numbers first go bad on some tokens.
            processes: those that take a share of each step; all of them end with the same adapter.
        """
        self.processes = processes
        self.losses: list[StepLoss] = []
        self.taken = 0
        self._late = Late(next(wrapped.parameters()).device)
        self._first_bad_layer = first_bad_layer
        self._adapter = {n: p for n, p in wrapped.named_parameters() if p.requires_grad}
        self._terms = terms
        self._forget = forget
        self._objective = objective
        self._settings = settings
        self._steps = per_epoch if settings.restart else per_epoch * settings.epochs
        self._noise = noise
        self._random = random
        self._optimizer, self._schedule = self._fresh()

    def begin_epoch(self, epoch: int, rescore: Callable[[Noise], None] | None) -> None:
        """What happens before each epoch but the first, which is number 0."""
        self._objective.new_epoch(epoch)
        if self._settings.restart:
            self._optimizer, self._schedule = self._fresh()
        if self._noise is not None:
            self._noise.new_epoch()
            if rescore is not None and self._settings.rescore:
                rescore(self._noise)

    def step(self, tokens: Tensor) -> None:
        """One step on ``tokens (batch, context)``; one whose numbers go bad changes nothing.

        Raises:
            NotFinite: a loss or a gradient is not, and such steps are not to be skipped; on a GPU
                some steps later.
        """
        noisy, clean = self._terms(tokens)
        self.processes.add([p.grad for p in self._adapter.values() if p.grad is not None])
        names, norms = _clip(self._adapter, self._settings.clip)
        terms = [loss for loss in (noisy, clean) if loss is not None]
        good = torch.stack([*terms, norms.sum()]).isfinite().all()
        self._optimizer.found_inf = (~good).float()  # type: ignore[attr-defined]
        self._optimizer.step()
        self._schedule.step()
        self._forget()
        self._late.add(self.taken, noisy, clean, names, norms)
        self.taken += 1
        if self._late.due:
            self.read(tokens)

    def read(self, tokens: Tensor) -> None:
        """Bring ``losses`` up to date; ``tokens`` are those at hand, to look for what went bad.

        Raises:
            NotFinite: as :meth:`step`.
        """
        for told in self._late.read():
            if told.finite:
                self.losses.append(StepLoss(told.step, told.noisy, told.clean))
                continue
            why = _why(told, self._first_bad_layer, tokens)
            if self._settings.on_bad_step == "stop":
                raise NotFinite(f"step {told.step}: {why}")
            self.losses.append(StepLoss(told.step, None, None, why))

    def state(self) -> State | None:
        """Everything, after a whole epoch that was read; None if the noise cannot tell its own."""
        remembered = {} if self._noise is None else self._noise.state()
        if remembered is None:
            return None
        moments, groups = state.of_optimizer(self._optimizer)
        tensors = {
            **state.below("adapter", {n: p.detach() for n, p in self._adapter.items()}),
            **state.below("moments", moments),
            **state.below("noise", remembered),
            **state.below("objective", self._objective.state_dict()),
            **state.below("random", state.of_global_random()),
            "terms": self._random.get_state(),
        }
        numbers = {
            "groups": groups,
            "schedule": self._schedule_state(),
            "losses": [asdict(loss) for loss in self.losses],
        }
        return State(tensors, numbers)

    def _schedule_state(self) -> dict[str, Any]:
        return {k: v for k, v in self._schedule.state_dict().items() if k != "lr_lambdas"}

    def load_state(self, kept: State) -> None:
        """Go on where :meth:`state` was taken.

        Raises:
            ValueError: it is of another training, or not finite.
        """
        moments = state.part("moments", kept.tensors)
        weights = state.part("adapter", kept.tensors)
        state.check_like(self._adapter, weights, moments)
        own = {"groups": state.of_optimizer(self._optimizer)[1], "schedule": self._schedule_state()}
        state.check_form(json.loads(json.dumps(own)), {name: kept.numbers[name] for name in own})
        with torch.no_grad():
            for name, values in weights.items():
                self._adapter[name].copy_(values)
        state.load_optimizer(self._optimizer, moments, kept.numbers["groups"])
        self._schedule.load_state_dict({**kept.numbers["schedule"], "lr_lambdas": [None]})
        if self._noise is not None:
            self._noise.load_state(state.part("noise", kept.tensors))
        self._objective.load_state_dict(state.part("objective", kept.tensors))
        if self.processes.main:  # each has dropout of its own
            state.load_global_random(state.part("random", kept.tensors))
        self._random.set_state(kept.tensors["terms"])
        self.losses = TypeAdapter(list[StepLoss]).validate_python(kept.numbers["losses"])
        self.taken = len(self.losses)

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
        _restore(training, kept, total, per_epoch)
        done = len(training.losses) // per_epoch
        show.note(f"{label} goes on after epoch {done} of {settings.epochs}")
    first = training.taken
    batches = _batches(windows, settings, seed, device, first // per_epoch)
    for number, tokens in enumerate(show.track(batches, label, total - first), first):
        if number > 0 and number % per_epoch == 0:
            training.read(tokens)
            if checkpoint is not None and number > first and training.processes.main:
                state = training.state()
                if state is not None:
                    checkpoint.save(state)
            training.begin_epoch(number // per_epoch, rescore)
        training.step(tokens)
    if training.taken > first:
        training.read(tokens)
    if all(loss.skipped is not None for loss in training.losses):
        raise NpftError(f"{label} skipped all its {total} steps: {training.losses[0].skipped}")


def _restore(training: Training, kept: State, total: int, per_epoch: int) -> None:
    try:
        training.load_state(kept)
        if not 0 < training.taken <= total or training.taken % per_epoch:
            raise ValueError(f"it is of {training.taken} steps, no whole epochs of this training")
    except Exception as error:
        raise NpftError(
            f"the kept state of the training is broken ({in_one_line(error)}): remove .work from "
            "the run folder to begin it again"
        ) from error


def _clip(adapter: dict[str, nn.Parameter], most: float) -> tuple[tuple[str, ...], Tensor]:
    """Limit the norm of all gradients; the parameters that have one, and each one's norm before."""
    found = {name: p for name, p in adapter.items() if p.grad is not None}
    gradients = [p.grad for p in found.values() if p.grad is not None]
    norms = torch.stack(torch._foreach_norm(gradients))
    torch.nn.utils.clip_grads_with_norm_(found.values(), most, norms.norm())
    return tuple(found), norms


def _why(told: Told, first_bad_layer: Callable[[Tensor], str], tokens: Tensor) -> str:
    """What went bad in a step, and where."""
    advice = "lower tuning.lr or the noise, or tune in float32"
    if not told.finite_losses:
        bad = next(x for x in (told.noisy, told.clean) if x is not None and not math.isfinite(x))
        return f"the tuning loss became {bad}, first in {first_bad_layer(tokens)}: {advice}"
    name = next(name for name, norm in told.norms.items() if not math.isfinite(norm))
    layer = name.removeprefix("base_model.model.").partition(".lora_")[0]
    return f"the gradient of layer {layer} is not finite: {advice}"


def _batches(
    windows: Tensor, settings: Tuning, seed: int, device: torch.device, first: int
) -> Iterator[Tensor]:
    """Batches from epoch ``first`` on, shuffled anew each epoch."""
    shuffle = generator(seed, "order")
    for epoch in range(settings.epochs):
        order = torch.randperm(len(windows), generator=shuffle)
        if epoch >= first:
            # Moved at once: to move each batch the host would have to wait for the device.
            yield from data.batches(windows[order].to(device), settings.batch_size, device)
