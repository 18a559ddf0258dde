"""Attention maps against closed forms and a plain loop."""

from __future__ import annotations

import pytest
import torch

from npft_tskd.attention import attention_map, gap, increments, resized
from npft_tskd.loss import attention_transfer, softened


def test_a_map_by_hand() -> None:
    features = torch.tensor([[[[3.0, 0.0]], [[1.0, 2.0]]]])  # energies 5 and 2
    expected = torch.tensor([[[5.0, 2.0]]]) / (29 / 2) ** 0.5
    torch.testing.assert_close(attention_map(features), expected)


def test_tokens_are_images_turned_round() -> None:
    features = torch.randn(3, 5, 7)
    turned = attention_map(features.transpose(1, 2), channel_dim=-1)
    assert torch.equal(turned, attention_map(features))


@pytest.mark.parametrize("shape", [(2, 4, 9), (2, 4, 5, 6)])
def test_against_attention_transfer(shape: tuple[int, ...]) -> None:
    """The published map is a unit vector: ours is longer by the root of the positions."""
    features = torch.randn(shape)
    published = torch.nn.functional.normalize(features.pow(2).mean(1).flatten(1))
    ours = attention_map(features).flatten(1)
    torch.testing.assert_close(ours, published * ours.shape[1] ** 0.5)


@pytest.mark.parametrize("factor", [1e-12, 1.0, 1e12])
def test_scale_does_not_count_and_root_mean_square_is_one(factor: float) -> None:
    features = torch.randn(2, 3, 4, 4)
    maps = attention_map(features * factor)
    torch.testing.assert_close(maps, attention_map(features))
    torch.testing.assert_close(maps.square().mean(dim=(1, 2)), torch.ones(2))


def test_nothing_to_see() -> None:
    features = torch.zeros(1, 2, 3, 3, requires_grad=True)
    maps = attention_map(features)
    assert not maps.any()
    maps.sum().backward()
    assert features.grad is not None
    assert torch.isfinite(features.grad).all()


def test_half_precision_is_widened() -> None:
    features = torch.full((1, 2, 4), 300.0, dtype=torch.float16)  # whose squares overflow
    torch.testing.assert_close(attention_map(features), torch.ones(1, 4))


def test_another_size_is_an_average_over_areas() -> None:
    maps = attention_map(torch.randn(2, 3, 4, 6))
    small = resized(maps, torch.Size((2, 3)))
    blocks = maps.view(2, 2, 2, 3, 2).mean(dim=(2, 4))
    torch.testing.assert_close(small, blocks / blocks.square().mean((1, 2), True).sqrt())
    assert resized(maps, maps.shape[1:]) is maps
    assert resized(maps[:, 0], torch.Size((3,))).shape == (2, 3)


def test_increments_by_hand() -> None:
    sequence = torch.tensor([1.0, 4.0, 2.0]).view(3, 1, 1)
    assert increments(sequence).flatten().tolist() == [3.0, 2.0]
    assert increments(sequence[:1].repeat(4, 1, 1)).count_nonzero() == 0


def test_the_gap_moves_the_student_alone() -> None:
    student, teacher = torch.randn(2, 2, 5, requires_grad=True).unbind()
    teacher = teacher.detach().requires_grad_()
    gap(student, teacher).sum().backward()
    assert teacher.grad is None


def test_softened_is_hintons_gradient() -> None:
    """T^2 KL has the gradient T (softmax(s/T) - softmax(t/T)) / rows."""
    student = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(6, 5, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(softened(student, teacher, 4.0), student)
    expected = 4 * ((student / 4).softmax(1) - (teacher / 4).softmax(1)) / 6
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)
    assert float(softened(teacher, teacher)) == pytest.approx(0, abs=1e-6)


def test_attention_transfer_sums_over_stages() -> None:
    ours, theirs = torch.tensor([[1.0, 3.0]]), torch.tensor([[1.0, 1.0]])
    assert float(attention_transfer([ours, theirs], [theirs, theirs])) == 2.0
    assert float(attention_transfer([ours, ours], [theirs, theirs])) == 4.0
