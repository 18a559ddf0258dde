"""Teacher to smaller student on noisy digits: ``python digits.py``, about ten minutes on one core.

Prints a table of test accuracies, mean and standard deviation over seeds, of a student trained by
cross-entropy alone, with knowledge distillation, with attention transfer on top, and with TSKD on
top. Each method's learning rate is the best of four on the validation set, by a seed of its own.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F
from digits_task import Images, Network, digits, student, teacher
from torch import Tensor

from npft_tskd.attention import attention_map
from npft_tskd.loss import attention_transfer, softened
from npft_tskd.review import Review
from npft_tskd.schedule import Schedule

RATES = (0.02, 0.05, 0.1, 0.2)
BATCH = 64
WEIGHT_DECAY = 5e-4
STEPS_DOWN = (150 / 240, 180 / 240, 210 / 240)
"""When the rate is divided by ten, as a share of the epochs; the paper's."""

Supervision = Callable[[int, Tensor, list[Tensor], list[Tensor]], Tensor]
"""(epoch, indices, the student's maps, the teacher's maps) to a loss."""


def train(
    network: Network,
    data: Images,
    epochs: int,
    rate: float,
    seed: int,
    guide: Network | None = None,
    supervise: Supervision | None = None,
    parameters: tuple[Tensor, ...] = (),
) -> None:
    """SGD with momentum; ``parameters`` are trained along with the network's."""
    optimizer = torch.optim.SGD(
        [*network.parameters(), *parameters], rate, momentum=0.9, weight_decay=WEIGHT_DECAY
    )
    milestones = [round(share * epochs) for share in STEPS_DOWN]
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones)
    random = torch.Generator().manual_seed(seed)
    logits, theirs = look(guide, data) if guide else (None, [])
    network.train()
    for epoch in range(epochs):
        for indices in torch.randperm(len(data.labels), generator=random).split(BATCH):
            answer, features = network(data.images[indices])
            loss = F.cross_entropy(answer, data.labels[indices])
            if logits is not None:
                loss = loss + softened(answer, logits[indices])
            if supervise is not None:
                maps = [attention_map(stage) for stage in features]
                loss = loss + supervise(epoch, indices, maps, [stage[indices] for stage in theirs])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()


@torch.no_grad()
def look(network: Network, data: Images) -> tuple[Tensor, list[Tensor]]:
    """Logits and attention maps of a trained network on all of a set."""
    network.eval()
    logits, features = network(data.images)
    return logits, [attention_map(stage) for stage in features]


def accuracy(network: Network, data: Images) -> float:
    """In per cent."""
    logits, _ = look(network, data)
    return 100 * float((logits.argmax(dim=1) == data.labels).float().mean())


def taught(
    method: str, data: Images, guide: Network, epochs: int, rate: float, seed: int
) -> Network:
    """A student trained by one of :data:`METHODS`."""
    torch.manual_seed(seed)
    network = student()
    if method == "cross-entropy":
        train(network, data, epochs, rate, seed)
    elif method == "KD":
        train(network, data, epochs, rate, seed, guide)
    elif method == "KD + attention transfer":
        train(
            network, data, epochs, rate, seed, guide, lambda _, __, a, b: attention_transfer(a, b)
        )
    else:
        review = Review([2, 2, 2], Schedule(interval=int(method.split()[-1]), memories=3))
        train(
            network, data, epochs, rate, seed, guide,
            lambda epoch, indices, a, b: review(epoch, indices.tolist(), a, b),
            tuple(review.parameters()),
        )  # fmt: skip
    return network


METHODS = (
    "cross-entropy",
    "KD",
    "KD + attention transfer",
    "KD + TSKD, interval 5",
    "KD + TSKD, interval 1",
)


def main() -> None:
    """Train the teacher, choose the rates, train the students and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("--epochs", type=int, default=120)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    training, validation, test = digits()
    torch.manual_seed(0)
    guide = teacher()
    train(guide, training, options.epochs, 0.1, 0)
    for name, network in (("teacher", guide), ("student", student())):
        print(f"{name}: {sum(weights.numel() for weights in network.parameters()):,} parameters")
    print(f"{len(training.labels)} images, {options.epochs} epochs")
    print(f"teacher: {accuracy(guide, test):.1f}% of {len(test.labels)} test images\n")
    print("| method | lr | test accuracy, % | against KD |\n| --- | --- | --- | --- |")
    rows = {}
    for method in METHODS:
        found = {}
        for rate in RATES:
            tried = taught(method, training, guide, options.epochs, rate, seed=100)
            found[rate] = accuracy(tried, validation)
            print(f"{method}, lr {rate}: validation {found[rate]:.1f}%", file=sys.stderr)
        best = max(found, key=lambda rate: found[rate])
        rows[method] = (
            best,
            [
                accuracy(taught(method, training, guide, options.epochs, best, seed), test)
                for seed in range(options.seeds)
            ],
        )
    base = statistics.mean(rows["KD"][1])
    for method, (rate, scores) in rows.items():
        mean, spread = statistics.mean(scores), statistics.stdev(scores)
        print(f"| {method} | {rate} | {mean:.1f} ± {spread:.1f} | {mean - base:+.1f} |")


if __name__ == "__main__":
    main()
