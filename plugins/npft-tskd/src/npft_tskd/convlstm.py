"""A convolutional LSTM over sequences of attention maps (Shi et al., arXiv 1506.04214)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ConvLSTM(nn.Module):
    r"""Reads a sequence of maps and predicts one map.

    .. math::
        i, f, g, o &= W_x * x_t + W_h * h_{t-1} + b \\
        c_t &= \sigma(f) \odot c_{t-1} + \sigma(i) \odot \tanh(g) \\
        h_t &= \sigma(o) \odot \tanh(c_t)

    with :math:`*` a convolution over space that keeps its size, and the prediction a linear
    read-out of the last h at each position. There are no peephole connections. The read-out
    begins at zero, so that an untrained one predicts zero.

    Args:
        dimensions: 1 for token sequences, 2 for images.
        hidden: channels of h and c.
        kernel: width of the convolutions, odd.
    """

    def __init__(self, dimensions: int, hidden: int = 8, kernel: int = 3) -> None:
        super().__init__()
        if dimensions not in (1, 2) or hidden < 1 or kernel < 1 or kernel % 2 == 0:
            raise ValueError(
                f"no Conv-LSTM of {dimensions} dimensions, {hidden} channels and kernel {kernel}: "
                "dimensions are 1 or 2, channels at least 1, and a kernel is odd"
            )
        convolution = nn.Conv1d if dimensions == 1 else nn.Conv2d
        self.dimensions = dimensions
        self.hidden = hidden
        self.gates = convolution(1 + hidden, 4 * hidden, kernel, padding=kernel // 2)
        self.readout = convolution(hidden, 1, 1)
        nn.init.zeros_(self.readout.weight)
        if self.readout.bias is not None:
            nn.init.zeros_(self.readout.bias)

    def forward(self, sequence: Tensor) -> Tensor:
        """``(time, batch, *spatial)`` to ``(batch, *spatial)``."""
        if sequence.dim() != 2 + self.dimensions:
            raise ValueError(
                f"a sequence of shape {tuple(sequence.shape)} for a Conv-LSTM of "
                f"{self.dimensions} dimensions: give (time, batch, *spatial)"
            )
        _, batch, *spatial = sequence.shape
        state = sequence.new_zeros(batch, self.hidden, *spatial)
        cell = torch.zeros_like(state)
        for maps in sequence:
            state, cell = self.step(maps.unsqueeze(1), state, cell)
        prediction: Tensor = self.readout(state)
        return prediction.squeeze(1)

    def step(self, maps: Tensor, state: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        """One step in time; maps ``(batch, 1, *spatial)``, states ``(batch, hidden, *spatial)``."""
        gates = self.gates(torch.cat([maps, state], dim=1))
        enter, forget, candidate, leave = gates.chunk(4, dim=1)
        cell = forget.sigmoid() * cell + enter.sigmoid() * candidate.tanh()
        return leave.sigmoid() * cell.tanh(), cell
