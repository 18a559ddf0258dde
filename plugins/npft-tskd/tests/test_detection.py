"""The loss on a detector's feature pyramid, and the small detector itself."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from detector import BACKGROUND, Detector, detection_loss, objects, targets
from distilling import TSKD, Answer, look, taught, train
from shapes import Shapes
from shapes_task import CLASSES, Objects, draw, mean_average_precision, overlap
from torch import Tensor

from npft_tskd.review import Review
from npft_tskd.schedule import Schedule


@pytest.fixture(scope="module")
def task() -> Shapes:
    return Shapes(count=64)


def test_a_perfect_answer_is_perfect() -> None:
    """The targets, decoded, are the truth: assignment, boxes, suppression and score agree."""
    images, truths = draw(100, seed=5)
    assert images.shape == (100, 3, 32, 32)
    classes, boxes = targets(truths)
    sure = Answer(20.0 * F.one_hot(classes, BACKGROUND + 1), [], boxes)
    assert mean_average_precision(objects(sure), truths) == pytest.approx(1)
    assert float(detection_loss(sure, classes, boxes)) < 1e-6


def test_every_level_has_objects(task: Shapes) -> None:
    here = (task.classes != BACKGROUND).sum(dim=0).split([64, 16, 4])
    assert all(int(level.sum()) > 10 for level in here)


def test_overlap_by_hand() -> None:
    boxes = torch.tensor([[0.0, 0, 2, 2], [1, 0, 3, 2], [5, 5, 6, 6]])
    torch.testing.assert_close(overlap(boxes[:1], boxes), torch.tensor([[1, 1 / 3, 0]]))


def said(boxes: list[list[float]], scores: list[float]) -> Objects:
    return Objects(
        torch.tensor(boxes).view(-1, 4),
        torch.zeros(len(boxes), dtype=torch.long),
        torch.tensor(scores),
    )


def test_average_precision_by_hand() -> None:
    """Right, wrong, right of two truths: precision 1 up to recall 1/2, then 2/3."""
    truth = said([[0.0, 0, 4, 4], [10, 10, 14, 14]], [1.0, 1.0])
    found = said([[0.0, 0, 4, 4], [0, 0, 4, 3.9], [10, 10, 14, 14]], [0.9, 0.8, 0.7])
    expected = (1 / 2 + 1 / 2 * 2 / 3) / len(CLASSES)
    assert mean_average_precision([found], [truth]) == pytest.approx(expected)
    assert mean_average_precision([said([], [])], [truth]) == 0


def test_gradients_reach_every_level_of_the_pyramid(task: Shapes) -> None:
    """By the review alone: each level, and all that it is made from, is moved by its own stage."""
    torch.manual_seed(0)
    student, teacher = Detector(width=3).train(), Detector(width=5)
    theirs = look(teacher, task.images[:8]).maps()
    review = Review([2, 2, 2], Schedule(interval=1, memories=1))
    answer: Answer = student(task.images[:8])
    review(0, range(8), answer.maps(), theirs)
    for predictor in review.predictors:
        torch.nn.init.normal_(predictor.readout.weight)
    answer = student(task.images[:8] + 0.1)
    loss: Tensor = review(1, range(8), answer.maps(), theirs)
    levels = torch.autograd.grad(loss, answer.features, retain_graph=True)
    assert all(bool(torch.isfinite(level).all()) and level.any() for level in levels)
    loss.backward()
    for part in (student.stem, *student.stages, *student.lateral, *student.smooth):
        assert all(weights.grad.any() for weights in part.parameters() if weights.dim() > 1)
    assert all(weights.grad is None for weights in student.head.parameters())


def test_a_detector_learns_with_tskd(task: Shapes) -> None:
    guide = task.teacher()
    before = train(guide, task, 12, 0.05, seed=0)
    assert before[-1] < 0.7 * before[0]
    method = next(name for name, interval in TSKD.items() if interval == 1)
    student = taught(method, task, guide, 12, 0.05, seed=0)
    untaught = taught(method, task, guide, 0, 0.05, seed=0)
    with torch.no_grad():  # in training mode, for so few steps leave no running averages
        losses = [
            float(detection_loss(network.train()(task.images), task.classes, task.boxes))
            for network in (student, untaught)
        ]
    assert losses[0] < 0.8 * losses[1]
