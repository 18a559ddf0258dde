"""Teacher to smaller student in four ways, whatever the task: training, choice of rate, table."""

from __future__ import annotations

import statistics
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from npft_tskd.attention import attention_map
from npft_tskd.loss import attention_transfer, softened
from npft_tskd.review import Review
from npft_tskd.schedule import Schedule

TEACHERS_RATE = 0.05
MOMENTUM = 0.9
WEIGHT_DECAY = 5e-4
STEPS_DOWN = (150 / 240, 180 / 240, 210 / 240)
"""When the rate is divided by ten, as a share of the epochs; the paper's."""
CHOOSING_SEED = 100

PLAIN = "task alone"
KD = "KD"
ATTENTION = "attention transfer"
TSKD = {f"TSKD, interval {interval}": interval for interval in (5, 1)}


@dataclass(frozen=True)
class Answer:
    """What a network says of a batch.

    Attributes:
        logits: ``(batch, ..., classes)``.
        features: the stages that are compared, each ``(batch, channels, height, width)``.
        boxes: ``(batch, ..., 4)`` of a detector.
    """

    logits: Tensor
    features: list[Tensor]
    boxes: Tensor | None = None

    def maps(self) -> list[Tensor]:
        """The stages' attention maps."""
        return [attention_map(stage) for stage in self.features]


class Task(ABC):
    """Training images, what is to be learnt of them, and how well it was."""

    images: Tensor
    unit: str
    rates: tuple[float, ...]
    """The learning rates to choose from."""
    base: str
    """What the methods that look at features are added to: KD, or PLAIN."""

    @property
    def methods(self) -> tuple[str, ...]:
        """All that are compared."""
        return (*dict.fromkeys((PLAIN, self.base)), ATTENTION, *TSKD)

    @abstractmethod
    def teacher(self) -> nn.Module:
        """The larger network, untrained; it gives an :class:`Answer` for images."""

    @abstractmethod
    def student(self) -> nn.Module:
        """The smaller one."""

    @abstractmethod
    def loss(self, answer: Answer, indices: Tensor) -> Tensor:
        """The task's own loss on the training images of these indices."""

    @abstractmethod
    def score(self, network: nn.Module, part: str) -> float:
        """Per cent right on ``validation`` or ``test``; more is better."""


Extra = Callable[[int, Tensor, Answer], Tensor]
"""What a method adds to the task's loss, by epoch, indices and answer."""


def train(
    network: nn.Module,
    task: Task,
    epochs: int,
    rate: float,
    seed: int,
    extra: Extra | None = None,
    more: tuple[nn.Parameter, ...] = (),
) -> list[float]:
    """SGD on the network and ``more`` parameters; the mean loss of each epoch."""
    parameters = [*network.parameters(), *more]
    optimizer = torch.optim.SGD(parameters, rate, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    milestones = [round(share * epochs) for share in STEPS_DOWN]
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones)
    random = torch.Generator().manual_seed(seed)
    network.train()
    means = []
    for epoch in range(epochs):
        losses = []
        for indices in torch.randperm(len(task.images), generator=random).split(64):
            answer = network(task.images[indices])
            loss = task.loss(answer, indices)
            if extra is not None:
                loss = loss + extra(epoch, indices, answer)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        schedule.step()
        means.append(statistics.mean(losses))
    return means


@torch.no_grad()
def look(network: nn.Module, images: Tensor) -> Answer:
    """What a trained network says of many images."""
    network.eval()
    answer: Answer = network(images)
    return answer


def taught(
    method: str, task: Task, guide: nn.Module, epochs: int, rate: float, seed: int
) -> nn.Module:
    """A student trained by one of the task's methods."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = task.student()
        interval = TSKD.get(method, 1)
        review = Review([2] * len(look(guide, task.images[:1]).features), Schedule(interval))
    known = look(guide, task.images)
    theirs = known.maps()

    def distilled(epoch: int, indices: Tensor, answer: Answer) -> Tensor:
        loss = answer.logits.new_zeros(())
        if task.base == KD:
            loss = loss + softened(answer.logits, known.logits[indices])
        maps = [stage[indices] for stage in theirs]
        if method == ATTENTION:
            loss = loss + attention_transfer(answer.maps(), maps)
        if method in TSKD:
            loss = loss + review(epoch, indices.tolist(), answer.maps(), maps)
        return loss

    if method == PLAIN:
        train(network, task, epochs, rate, seed)
    elif method in TSKD:
        train(network, task, epochs, rate, seed, distilled, tuple(review.parameters()))
    else:
        train(network, task, epochs, rate, seed, distilled)
    return network


def compare(task: Task, epochs: int, seeds: int) -> None:
    """Train the teacher, then students by every method, and print the table.

    Each method's learning rate is the best of the task's on the validation set, by a seed of its
    own.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        guide = task.teacher()
    train(guide, task, epochs, TEACHERS_RATE, 0)
    for name, network in (("teacher", guide), ("student", task.student())):
        print(f"{name}: {sum(weights.numel() for weights in network.parameters()):,} parameters")
    print(f"{len(task.images)} training images, {epochs} epochs, {seeds} seeds")
    print(f"teacher, test: {task.score(guide, 'test'):.1f}\n")
    rows = {}
    for method in task.methods:
        rate = _best_rate(method, task, guide, epochs)
        rows[method] = (
            rate,
            [
                task.score(taught(method, task, guide, epochs, rate, seed), "test")
                for seed in range(seeds)
            ],
        )
        print(f"{method}: {rows[method][1]}", file=sys.stderr)
    print(f"| method | lr | {task.unit} | against {task.base} |\n| --- | --- | --- | --- |")
    base = statistics.mean(rows[task.base][1])
    for method, (rate, scores) in rows.items():
        mean, spread = statistics.mean(scores), statistics.stdev(scores)
        added = f"{task.base} + " if method not in (PLAIN, KD) else ""
        print(f"| {added}{method} | {rate} | {mean:.1f} ± {spread:.1f} | {mean - base:+.1f} |")


def _best_rate(method: str, task: Task, guide: nn.Module, epochs: int) -> float:
    found = {}
    for rate in task.rates:
        tried = taught(method, task, guide, epochs, rate, CHOOSING_SEED)
        found[rate] = task.score(tried, "validation")
        print(f"{method}, lr {rate}: validation {found[rate]:.1f}", file=sys.stderr)
    return max(found, key=lambda rate: found[rate])
