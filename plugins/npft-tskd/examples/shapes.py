"""Teacher to smaller detector, by their pyramids: ``python shapes.py``, minutes on one core."""

from __future__ import annotations

import argparse

import torch
from detector import Detector, detection_loss, objects, targets
from distilling import PLAIN, Answer, Task, compare, look
from shapes_task import draw, mean_average_precision
from torch import Tensor, nn


class Shapes(Task):
    """Which shapes are where on noise."""

    unit = "mean average precision at overlap 0.5, %"
    rates = (0.05, 0.1)
    base = PLAIN  # KD over cells, most of them empty, lowers the precision

    def __init__(self, count: int = 500) -> None:
        """On ``count`` training images, half as many for validation, as many for the test."""
        self.images, truths = draw(count, seed=0)
        self.classes, self.boxes = targets(truths)
        self.held_back = {"validation": draw(count // 2, seed=1), "test": draw(count, seed=2)}

    def teacher(self) -> nn.Module:
        return Detector(width=8)

    def student(self) -> nn.Module:
        return Detector(width=4)

    def loss(self, answer: Answer, indices: Tensor) -> Tensor:
        return detection_loss(answer, self.classes[indices], self.boxes[indices])

    def score(self, network: nn.Module, part: str) -> float:
        images, truths = self.held_back[part]
        return 100 * mean_average_precision(objects(look(network, images)), truths)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    compare(Shapes(), options.epochs, options.seeds)
