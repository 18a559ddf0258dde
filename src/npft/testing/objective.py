"""The contract of objectives."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from npft.artifacts import LanguageModel
from npft.contracts import Loss, Objective
from npft.seeding import generator
from npft.testing.models import devices, small_models, tokens
from npft.testing.promises import check_class, left_alone, require, same
from npft.testing.waiting import never_waiting

_EPOCHS = 8  # enough for an objective that remembers to come to use what it remembers


def check_objective(objective: Objective) -> None:
    """Check an objective against :class:`npft.contracts.Objective`.

    Raises:
        AssertionError: options are not validated; the loss is no finite scalar on the model's
            device, has no gradient with respect to the student, or differs between two calls; it
            says that it averages over windows, and is not the mean of theirs; it says
            that it is replayable, and waits for the device or changes from epoch to epoch; two
            tunings that begin alike go on differently, or do so from the same state; the inputs
            change; the global random state is touched.
    """
    check_class(objective, Objective)
    for device in devices():
        windows = tokens(device)
        for dtype in (torch.float32, torch.bfloat16):
            for model in small_models(device=device, dtype=dtype):
                for batch in (windows, windows[:1]):
                    _check_loss(objective, model, batch)
        for model in small_models(device=device):
            _check_course(objective, model, windows)


def _check_loss(objective: Objective, model: LanguageModel, batch: Tensor) -> None:
    student, original = outputs(objective, model, batch)
    leaves = [student.logits, *(student.hidden_states or ())]
    fixed = [original.logits, *(original.hidden_states or ())] if original is not None else []
    with left_alone(objective, batch, *leaves, *fixed):
        loss = objective.loss(student, batch, original)
    require(
        isinstance(loss, Tensor) and loss.dim() == 0,
        objective,
        f"must return a finite scalar tensor, not {loss}",
    )
    there = loss.device == batch.device
    require(there, objective, f"gives a loss on {loss.device}, not on {batch.device}")
    require(bool(torch.isfinite(loss)), objective, f"must return a finite scalar, not {loss}")
    require(loss.requires_grad, objective, "has no gradient: was it detached?")
    gradients = torch.autograd.grad(loss, leaves, retain_graph=True, allow_unused=True)
    found = [g for g in gradients if g is not None]
    fine = all(bool(torch.isfinite(g).all()) for g in found) and any(g.any() for g in found)
    require(fine, objective, "has a zero, NaN or infinite gradient for the student's output")
    again = objective.loss(student, batch, original)
    require(same(loss, again), objective, "gives another loss for the same outputs")
    if objective.replayable:
        with never_waiting(objective, "replayable"):
            torch.autograd.grad(objective.loss(student, batch, original), leaves, allow_unused=True)
    if objective.averages_over_windows:
        each = [
            objective.loss(
                _window(student, index), batch[index : index + 1], _window(original, index)
            )
            for index in range(len(batch))
        ]
        close = torch.allclose(torch.stack(each).mean(), loss, rtol=1e-2, atol=1e-4)
        require(close, objective, "averages_over_windows, but its loss is no mean: leave it False")


def _window(output: Any | None, index: int) -> Any | None:
    """What of a model's output on a batch is about one window."""
    if output is None:
        return None
    one = slice(index, index + 1)
    hidden = output.hidden_states and tuple(states[one] for states in output.hidden_states)
    return SimpleNamespace(logits=output.logits[one], hidden_states=hidden)


def _check_course(objective: Objective, model: LanguageModel, batch: Tensor) -> None:
    """Require that a tuning can be repeated, and taken up again after any epoch."""
    student, original = outputs(objective, model, batch)

    def epoch(begun: Loss, number: int) -> Tensor:
        if number > 0:
            begun.new_epoch(number)
        return begun.loss(student, batch, original)

    with left_alone(objective, batch, student.logits):
        one, two = objective.begin(0), objective.begin(0)
        losses: list[Tensor] = []
        for number in range(_EPOCHS):
            loss, again = epoch(one, number), epoch(two, number)
            fine = bool(torch.isfinite(loss)) and loss.requires_grad
            require(fine, objective, f"gives {loss} in epoch {number}: not finite, or no gradient")
            equal = same(loss, again)
            require(equal, objective, f"cannot be repeated: epoch {number} differs")
            losses.append(loss.detach())
            lasting = not objective.replayable or same(loss, losses[0])
            require(lasting, objective, f"is replayable, but its loss changes by epoch {number}")
            kept = {name: value.clone() for name, value in two.state_dict().items()}
            two = objective.begin(0)
            two.load_state_dict(kept)


def outputs(objective: Objective, model: LanguageModel, batch: Tensor) -> tuple[Any, Any | None]:
    """What an objective is given: a student a little off the original, whose parts are leaves."""
    hidden = objective.needs_hidden_states
    with torch.no_grad():
        student = model.network(batch, output_hidden_states=hidden)
        original = model.network(batch, output_hidden_states=hidden)
    noise = generator(0, "logits")
    for leaf in (student.logits, *(student.hidden_states or ())):
        off = torch.randn(leaf.shape, generator=noise).to(leaf)
        leaf.add_(0.1 * off).requires_grad_()
    return student, original if objective.needs_original else None
