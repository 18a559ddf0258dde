"""The digits that scikit-learn ships, made harder, and two convolutional networks for them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from distilling import Answer
from sklearn.datasets import load_digits
from torch import Tensor, nn

CANVAS = 12
NOISE = 0.15
"""Standard deviation of the background, where ink is 0 to 1."""


@dataclass(frozen=True)
class Images:
    """Images ``(n, 1, 12, 12)`` and labels ``(n,)``."""

    images: Tensor
    labels: Tensor


def digits(train: int = 800, validation: int = 300, views: int = 4) -> tuple[Images, ...]:
    """Train, validation and test sets: each 8 x 8 digit somewhere on a noisy 12 x 12 canvas.

    Place and noise of an image are drawn once, so that a sample looks the same in every epoch, and
    its memories can be compared position by position. What is left of the 1797 digits is the
    test set, each put on ``views`` canvases.
    """
    bunch = load_digits()
    random = torch.Generator().manual_seed(0)
    order = torch.randperm(len(bunch.target), generator=random)
    ink = torch.tensor(bunch.images, dtype=torch.float32)[order] / 16
    labels = torch.tensor(bunch.target)[order]
    parts = []
    for begin, end, times in (
        (0, train, 1),
        (train, train + validation, 1),
        (train + validation, None, views),
    ):
        repeated = ink[begin:end].repeat(times, 1, 1)
        parts.append(Images(_placed(repeated, random), labels[begin:end].repeat(times)))
    return tuple(parts)


def _placed(ink: Tensor, random: torch.Generator) -> Tensor:
    canvas = NOISE * torch.randn(len(ink), 1, CANVAS, CANVAS, generator=random)
    corners = torch.randint(CANVAS - 8 + 1, (len(ink), 2), generator=random)
    for image, digit, (top, left) in zip(canvas, ink, corners.tolist(), strict=True):
        image[0, top : top + 8, left : left + 8] += digit
    return canvas


class Network(nn.Module):
    """Three stages of 3 x 3 convolutions at 12, 6 and 3 pixels a side."""

    def __init__(self, width: int, depth: int) -> None:
        """Of ``depth`` convolutions each; the first has ``width`` channels, the next twice them."""
        super().__init__()
        self.stages = nn.ModuleList()
        channels = 1
        for stage in range(3):
            wide = width * 2**stage
            layers: list[nn.Module] = []
            for layer in range(depth):
                stride = 2 if stage > 0 and layer == 0 else 1
                layers += [
                    nn.Conv2d(channels, wide, 3, stride, 1, bias=False),
                    nn.BatchNorm2d(wide),
                    nn.ReLU(),
                ]
                channels = wide
            self.stages.append(nn.Sequential(*layers))
        self.classify = nn.Linear(channels, 10)

    def forward(self, images: Tensor) -> Answer:
        """Logits ``(n, 10)``, and each stage's features."""
        features = []
        for stage in self.stages:
            images = stage(images)
            features.append(images)
        return Answer(self.classify(images.mean(dim=(2, 3))), features)
