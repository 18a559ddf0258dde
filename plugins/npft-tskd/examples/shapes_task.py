"""Coloured shapes on noise: images, the objects in them, and average precision."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

SIDE = 32
CLASSES = ("square", "frame", "cross")
NOISE = 0.15
"""Standard deviation of the noise on a black ground; colours are drawn from 0.4 to 1."""


@dataclass(frozen=True)
class Objects:
    """What is in an image, or is said to be: ``boxes (n, 4)`` as left, top, right, bottom.

    Attributes:
        boxes: in pixels.
        classes: ``(n,)``, places in :data:`CLASSES`.
        scores: ``(n,)``, how sure a detector is; ones where it is the truth.
    """

    boxes: Tensor
    classes: Tensor
    scores: Tensor


def draw(count: int, seed: int) -> tuple[Tensor, list[Objects]]:
    """Images ``(count, 3, 32, 32)``, each with one to three shapes that do not overlap."""
    random = torch.Generator().manual_seed(seed)
    images = NOISE * torch.randn(count, 3, SIDE, SIDE, generator=random)
    truths = []
    for image in images:
        boxes: list[Tensor] = []
        classes: list[int] = []
        for _ in range(int(torch.randint(1, 4, (), generator=random))):
            size = 7 + 11 * float(torch.rand((), generator=random))
            corner = torch.rand(2, generator=random) * (SIDE - size)
            box = torch.cat([corner, corner + size])
            if boxes and bool((overlap(box[None], torch.stack(boxes)) > 0).any()):
                continue
            kind = int(torch.randint(len(CLASSES), (), generator=random))
            colour = 0.4 + 0.6 * torch.rand(3, 1, generator=random)
            image[:, _inside(kind, box)] += colour
            boxes.append(box)
            classes.append(kind)
        truths.append(Objects(torch.stack(boxes), torch.tensor(classes), torch.ones(len(boxes))))
    return images, truths


def _inside(kind: int, box: Tensor) -> Tensor:
    """Which pixels ``(32, 32)`` a shape covers."""
    places = torch.arange(SIDE) + 0.5
    size = box[2] - box[0]
    x = ((places - box[0]) / size)[None, :]
    y = ((places - box[1]) / size)[:, None]
    across, down = (x - 0.5).abs(), (y - 0.5).abs()
    within = (across <= 0.5) & (down <= 0.5)
    if CLASSES[kind] == "frame":
        return within & ((across > 0.25) | (down > 0.25))
    if CLASSES[kind] == "cross":
        return within & ((across <= 0.15) | (down <= 0.15))
    return within


def overlap(one: Tensor, other: Tensor) -> Tensor:
    """Intersection over union of boxes ``(n, 4)`` and ``(m, 4)``: ``(n, m)``."""
    low = torch.maximum(one[:, None, :2], other[None, :, :2])
    high = torch.minimum(one[:, None, 2:], other[None, :, 2:])
    shared = (high - low).clamp(min=0).prod(dim=2)
    area = [(boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(dim=1) for boxes in (one, other)]
    return shared / (area[0][:, None] + area[1][None, :] - shared)


def mean_average_precision(found: list[Objects], truths: list[Objects]) -> float:
    """The area under precision over recall at an overlap of 0.5, averaged over the classes."""
    each = [_average_precision(found, truths, kind) for kind in range(len(CLASSES))]
    return sum(each) / len(each)


def _average_precision(found: list[Objects], truths: list[Objects], kind: int) -> float:
    """A detection is right if the truth that it overlaps most is not yet taken by a surer one."""
    scores, right = [], []
    total = 0
    for said, truth in zip(found, truths, strict=True):
        there = truth.boxes[truth.classes == kind]
        total += len(there)
        taken = set()
        mine = said.classes == kind
        surest_first = said.scores[mine].argsort(descending=True)
        for box, score in zip(
            said.boxes[mine][surest_first], said.scores[mine][surest_first], strict=True
        ):
            overlaps = overlap(box[None], there)[0]
            best = int(overlaps.argmax()) if len(there) else -1
            hit = best >= 0 and float(overlaps[best]) >= 0.5 and best not in taken
            if hit:
                taken.add(best)
            scores.append(float(score))
            right.append(float(hit))
    if not scores or not total:
        return 0.0
    order = torch.tensor(scores).argsort(descending=True)
    hits = torch.tensor(right)[order]
    precision = hits.cumsum(0) / torch.arange(1, len(hits) + 1)
    envelope = precision.flip(0).cummax(0).values.flip(0)
    return float((envelope * hits).sum() / total)
