"""Teacher to smaller student on noisy digits: ``python digits.py``, minutes on one core."""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from digits_task import Network, digits
from distilling import KD, Answer, Task, compare, look
from torch import Tensor, nn


class Digits(Task):
    """Which of ten digits is on a noisy canvas."""

    unit = "test accuracy, %"
    rates = (0.02, 0.05, 0.1, 0.2)
    base = KD

    def __init__(self) -> None:
        """On the sets of :func:`digits_task.digits`."""
        training, validation, test = digits()
        self.images, self.labels = training.images, training.labels
        self.held_back = {"validation": validation, "test": test}

    def teacher(self) -> nn.Module:
        return Network(width=16, depth=2)

    def student(self) -> nn.Module:
        return Network(width=4, depth=1)

    def loss(self, answer: Answer, indices: Tensor) -> Tensor:
        return F.cross_entropy(answer.logits, self.labels[indices])

    def score(self, network: nn.Module, part: str) -> float:
        answer = look(network, self.held_back[part].images)
        right = answer.logits.argmax(dim=1) == self.held_back[part].labels
        return 100 * float(right.float().mean())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=120)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    compare(Digits(), options.epochs, options.seeds)
