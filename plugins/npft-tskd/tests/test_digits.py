"""The digits example: its data, and that every method trains."""

from __future__ import annotations

import pytest
import torch
from digits import Digits
from digits_task import digits
from distilling import ATTENTION, KD, PLAIN, TSKD, taught, train
from torch import nn


def test_the_sets_are_apart_and_fixed() -> None:
    training, validation, test = digits()
    assert [len(part.labels) for part in (training, validation, test)] == [800, 300, 4 * 697]
    assert torch.equal(training.images, digits()[0].images)
    counts = torch.bincount(test.labels)
    assert counts.min() > 0.08 * len(test.labels)


@pytest.fixture(scope="module")
def task() -> Digits:
    small = Digits()
    small.images, small.labels = small.images[:256], small.labels[:256]
    return small


@pytest.fixture(scope="module")
def guide(task: Digits) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = task.teacher()
    losses = train(network, task, 12, 0.05, 0)
    assert losses[-1] < 0.5 * losses[0]
    return network


@pytest.mark.parametrize("method", [PLAIN, KD, ATTENTION, *TSKD])
def test_every_method_teaches(method: str, task: Digits, guide: nn.Module) -> None:
    student = taught(method, task, guide, 16, 0.1, seed=0)
    untaught = taught(method, task, guide, 0, 0.1, seed=0)
    with torch.no_grad():  # in training mode, for so few steps leave no running averages
        losses = [
            float(task.loss(network.train()(task.images), torch.arange(256)))
            for network in (student, untaught)
        ]
    assert losses[0] < 0.9 * losses[1]
    again = taught(method, task, guide, 16, 0.1, seed=0)
    assert torch.equal(student.classify.weight, again.classify.weight)
