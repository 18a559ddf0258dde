"""The Conv-LSTM against torch's LSTM, and against its equations written out with convolutions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from npft_tskd.convlstm import ConvLSTM


def opened(module: ConvLSTM) -> ConvLSTM:
    """With a read-out that is not zero."""
    nn.init.normal_(module.readout.weight)
    nn.init.normal_(module.readout.bias)
    return module


@pytest.mark.parametrize(
    ("dimensions", "spatial"), [(1, (1,)), (2, (1, 1)), (1, (6,)), (2, (3, 4))]
)
def test_kernel_one_is_an_lstm_at_each_position(dimensions: int, spatial: tuple[int, ...]) -> None:
    ours = opened(ConvLSTM(dimensions, hidden=5, kernel=1))
    theirs = nn.LSTM(1, 5)
    weight = ours.gates.weight.detach().flatten(1)
    with torch.no_grad():
        theirs.weight_ih_l0.copy_(weight[:, :1])
        theirs.weight_hh_l0.copy_(weight[:, 1:])
        theirs.bias_ih_l0.copy_(ours.gates.bias)
        theirs.bias_hh_l0.zero_()
    sequence = torch.randn(4, 2, *spatial)
    states, _ = theirs(sequence.flatten(1).unsqueeze(-1))
    expected = states[-1] @ ours.readout.weight.flatten() + ours.readout.bias
    torch.testing.assert_close(ours(sequence), expected.view(2, *spatial))


def test_against_the_equations() -> None:
    """Gate by gate, with a convolution of its own for the input and for the state."""
    ours = opened(ConvLSTM(2, hidden=3, kernel=3))
    sequence = torch.randn(4, 2, 5, 6)
    weights, biases = ours.gates.weight.chunk(4), ours.gates.bias.chunk(4)

    def gate(index: int, x: Tensor, h: Tensor) -> Tensor:
        from_input = F.conv2d(x, weights[index][:, :1], biases[index], padding=1)
        return from_input + F.conv2d(h, weights[index][:, 1:], padding=1)

    h = c = torch.zeros(2, 3, 5, 6)
    for maps in sequence:
        x = maps[:, None]
        i, f, o = (torch.sigmoid(gate(index, x, h)) for index in (0, 1, 3))
        c = f * c + i * torch.tanh(gate(2, x, h))
        h = o * torch.tanh(c)
    expected = torch.einsum("c,bcyx->byx", ours.readout.weight.flatten(), h) + ours.readout.bias
    torch.testing.assert_close(ours(sequence), expected)


@pytest.mark.parametrize("dimensions", [1, 2])
def test_it_moves_with_its_input(dimensions: int) -> None:
    """Convolutions commute with shifts: away from the border, so does the whole."""
    ours = opened(ConvLSTM(dimensions, hidden=2))
    sequence = torch.zeros(2, 1, *(16,) * dimensions)
    centre = (..., *(slice(7, 9),) * dimensions)
    sequence[centre] = torch.randn(2, 1, *(2,) * dimensions)
    shifted = ours(sequence.roll(1, dims=-1))
    torch.testing.assert_close(shifted[..., 4:12], ours(sequence)[..., 3:11])


def test_it_begins_at_zero_and_learns() -> None:
    torch.manual_seed(0)
    ours = ConvLSTM(1)
    sequence = torch.rand(3, 16, 10)
    assert not ours(sequence).any()
    target = sequence.mean(dim=0)
    optimizer = torch.optim.Adam(ours.parameters(), lr=3e-2)
    for _ in range(200):
        loss = F.mse_loss(ours(sequence), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.1 * float(target.var())


@pytest.mark.parametrize("wrong", [(3, 8, 3), (1, 0, 3), (1, 8, 2)])
def test_bad_sizes_are_refused(wrong: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="no Conv-LSTM"):
        ConvLSTM(*wrong)


def test_a_sequence_of_other_dimensions_is_refused() -> None:
    with pytest.raises(ValueError, match=r"give \(time, batch, \*spatial\)"):
        ConvLSTM(1)(torch.zeros(2, 1, 3, 3))
