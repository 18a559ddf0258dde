"""A one-stage detector with a feature pyramid (Lin et al., arXiv 1612.03144), small and plain."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from distilling import Answer
from shapes_task import CLASSES, SIDE, Objects, overlap
from torch import Tensor, nn

STRIDES = (4, 8, 16)
LARGEST = (9.0, 13.0, float("inf"))
"""Up to which size a level of the pyramid looks for objects."""
BACKGROUND = len(CLASSES)


class Detector(nn.Module):
    """Every cell of every level says what is centred in it, and where its box is.

    The answer's logits are ``(batch, cells, classes + 1)``, the last one for background; its boxes
    ``(batch, cells, 4)``: the centre from the cell's, in strides, and the logarithm of width and
    height over strides. Its features are the levels of the pyramid, finest first.
    """

    def __init__(self, width: int) -> None:
        """The stages at 8, 4 and 2 cells a side have 2, 4 and 8 times ``width`` channels."""
        super().__init__()
        self.stem = _halving(3, width)
        wide = [2 * width, 4 * width, 8 * width]
        narrow = [width, *wide[:-1]]
        self.stages = nn.ModuleList(map(_halving, narrow, wide))
        level = 2 * width
        self.lateral = nn.ModuleList(nn.Conv2d(channels, level, 1) for channels in wide)
        self.smooth = nn.ModuleList(nn.Conv2d(level, level, 3, padding=1) for _ in wide)
        self.head = nn.Sequential(
            _convolution(level, level, 1), nn.Conv2d(level, BACKGROUND + 5, 1)
        )

    def forward(self, images: Tensor) -> Answer:
        features = []
        hidden = self.stem(images)
        for stage in self.stages:
            hidden = stage(hidden)
            features.append(hidden)
        pyramid: list[Tensor] = []
        for hidden, lateral in zip(features[::-1], list(self.lateral)[::-1], strict=True):
            merged = lateral(hidden)
            if pyramid:
                merged = merged + F.interpolate(pyramid[0], scale_factor=2)
            pyramid.insert(0, merged)
        levels = [smooth(level) for level, smooth in zip(pyramid, self.smooth, strict=True)]
        said = torch.cat([self.head(level).flatten(2) for level in levels], dim=2).transpose(1, 2)
        return Answer(said[..., :-4], levels, said[..., -4:])


def _convolution(narrow: int, wide: int, stride: int) -> nn.Sequential:
    convolution = nn.Conv2d(narrow, wide, 3, stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(wide), nn.ReLU())


def _halving(narrow: int, wide: int) -> nn.Sequential:
    return nn.Sequential(_convolution(narrow, wide, 2), _convolution(wide, wide, 1))


def cells() -> tuple[Tensor, Tensor]:
    """Centres ``(cells, 2)`` and strides ``(cells,)`` of all levels, in pixels."""
    centres, strides = [], []
    for stride in STRIDES:
        places = (torch.arange(SIDE // stride) + 0.5) * stride
        y, x = torch.meshgrid(places, places, indexing="ij")
        centres.append(torch.stack([x, y], dim=-1).flatten(0, 1))
        strides.append(torch.full((len(centres[-1]),), float(stride)))
    return torch.cat(centres), torch.cat(strides)


def targets(truths: list[Objects]) -> tuple[Tensor, Tensor]:
    """What every cell should say: classes ``(images, cells)`` and boxes ``(images, cells, 4)``.

    An object belongs to the cells in the middle half of its box, and to the nearest, on one level.
    """
    centres, strides = cells()
    classes = torch.full((len(truths), len(centres)), BACKGROUND)
    boxes = torch.zeros(len(truths), len(centres), 4)
    for image, truth in enumerate(truths):
        for box, kind in zip(truth.boxes, truth.classes, strict=True):
            middle, size = (box[:2] + box[2:]) / 2, box[2:] - box[:2]
            level = next(i for i, most in enumerate(LARGEST) if float(size.max()) <= most)
            away = (centres - middle).abs().amax(dim=1)
            away = away.where(strides == STRIDES[level], torch.inf)
            here = (away <= size.max() / 4) | (away == away.min())
            offsets = (middle - centres[here]) / STRIDES[level]
            classes[image, here] = kind
            extent = (size / STRIDES[level]).log().expand(len(offsets), 2)
            boxes[image, here] = torch.cat([offsets, extent], dim=1)
    return classes, boxes


def detection_loss(answer: Answer, classes: Tensor, boxes: Tensor) -> Tensor:
    """Cross-entropy of the cells with an object and of those without, and L1 of the boxes."""
    assert answer.boxes is not None
    each = F.cross_entropy(answer.logits.transpose(1, 2), classes, reduction="none")
    object_here = classes != BACKGROUND
    where = F.l1_loss(answer.boxes[object_here], boxes[object_here])
    return each[object_here].mean() + each[~object_here].mean() + where


def objects(answer: Answer, most: int = 20) -> list[Objects]:
    """The surest detections of each image, without those that a surer one of its class covers."""
    assert answer.boxes is not None
    centres, strides = cells()
    middles = centres + answer.boxes[..., :2] * strides[:, None]
    sizes = answer.boxes[..., 2:].clamp(max=4).exp() * strides[:, None]
    boxes = torch.cat([middles - sizes / 2, middles + sizes / 2], dim=-1)
    scores, classes = answer.logits.softmax(dim=-1)[..., :-1].max(dim=-1)
    found = []
    for image in range(len(boxes)):
        order = scores[image].topk(most).indices
        found.append(_alone(boxes[image, order], classes[image, order], scores[image, order]))
    return found


def _alone(boxes: Tensor, classes: Tensor, scores: Tensor) -> Objects:
    """Non-maximum suppression at an overlap of 0.5; the boxes come surest first."""
    covers = (overlap(boxes, boxes) > 0.5) & (classes[:, None] == classes[None, :])
    kept: list[int] = []
    for place in range(len(boxes)):
        if not any(bool(covers[surer, place]) for surer in kept):
            kept.append(place)
    return Objects(boxes[kept], classes[kept], scores[kept])
