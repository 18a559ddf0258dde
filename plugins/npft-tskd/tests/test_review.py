"""The review's loss against the parts it is made of, and where its gradients go."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from npft_tskd.attention import attention_map, gap, increments
from npft_tskd.review import Review
from npft_tskd.schedule import Schedule

KEYS = [0, 1]
SHAPES = [(6,), (3, 4)]


def maps(seed: int) -> list[Tensor]:
    random = torch.Generator().manual_seed(seed)
    return [attention_map(torch.randn(2, 3, *shape, generator=random)) for shape in SHAPES]


def opened() -> Review:
    """After its memories, with predictors that have something to say."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        review = Review([1, 2], Schedule(interval=1, memories=3))
        for predictor in review.predictors:
            torch.nn.init.normal_(predictor.readout.weight)
    for epoch in range(3):
        assert float(review(epoch, KEYS, maps(epoch), maps(9))) == 0
    return review


def test_the_sum_over_stages() -> None:
    review = opened()
    now, teacher = maps(3), maps(9)
    expected = torch.zeros(())
    for stage, predict in enumerate(review.predictors):
        sequence = torch.stack([*(maps(epoch)[stage] for epoch in range(3)), now[stage]])
        predicted = predict(increments(sequence))
        expected += F.mse_loss(predicted, gap(now[stage], teacher[stage]))
    torch.testing.assert_close(review(3, KEYS, now, teacher), expected)


def test_the_target_moves_with_the_student() -> None:
    """Without a prediction the loss is attention transfer's, and has its gradient."""
    review = Review([1, 2], Schedule(interval=1, memories=1))
    review(0, KEYS, maps(0), maps(9))
    now = [stage.requires_grad_() for stage in maps(1)]
    review(1, KEYS, now, maps(9)).backward()
    for stage, theirs in zip(now, maps(9), strict=True):
        expected = 2 * (stage - theirs) / stage.numel()
        torch.testing.assert_close(stage.grad, expected.detach())


def test_gradients_reach_student_through_both_sides_and_predictors_but_not_the_teacher() -> None:
    review = opened()
    now = [stage.requires_grad_() for stage in maps(3)]
    teacher = [stage.requires_grad_() for stage in maps(9)]
    review(3, KEYS, now, teacher).backward()
    assert all(parameter.grad.any() for parameter in review.predictors.parameters())
    assert all(stage.grad is None for stage in teacher)
    for stage, predict in enumerate(review.predictors):
        sides = []
        for fixed_target in (True, False):
            student = now[stage].detach().requires_grad_()
            past = torch.stack([maps(epoch)[stage] for epoch in range(3)])
            seen = student if fixed_target else student.detach()
            aimed = student.detach() if fixed_target else student
            predicted = predict(increments(torch.cat([past, seen[None]])))
            loss = F.mse_loss(predicted, gap(aimed, teacher[stage]))
            sides += torch.autograd.grad(loss, student)
        assert sides[0].any()
        torch.testing.assert_close(now[stage].grad, sides[0] + sides[1])


def test_samples_without_memories_are_left_out() -> None:
    review = opened()
    now, teacher = maps(3), maps(9)
    alone = review(3, [1], [stage[1:] for stage in now], [stage[1:] for stage in teacher])
    torch.testing.assert_close(review(3, ["new", 1], now, teacher), alone)
    assert float(review(3, ["new", "newer"], now, teacher)) == 0


def test_a_teacher_of_another_resolution() -> None:
    review = opened()
    teacher = [attention_map(torch.randn(2, 5, 12)), attention_map(torch.randn(2, 5, 6, 8))]
    assert float(review(3, KEYS, maps(3), teacher).detach()) > 0


def test_a_missing_stage_is_refused() -> None:
    with pytest.raises(ValueError):
        opened()(3, KEYS, maps(3)[:1], maps(9))


def test_it_goes_on_from_what_was_saved() -> None:
    review, other = opened(), Review([1, 2], Schedule(interval=1, memories=3))
    other.load_state(review.state())
    now, teacher = maps(3), maps(9)
    assert torch.equal(review(3, KEYS, now, teacher), other(3, KEYS, now, teacher))
