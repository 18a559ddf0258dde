"""Temporal supervision of any network that shows its feature maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from npft_tskd.attention import gap, increments, resized
from npft_tskd.convlstm import ConvLSTM
from npft_tskd.memory import Key, Memory
from npft_tskd.schedule import Schedule


class Review(nn.Module):
    r"""One Conv-LSTM per stage, and the memories that it reads.

    In a memory epoch the student's attention maps are stored. In a review epoch the loss is

    .. math:: \sum_s \mathrm{MSE}\big(
        \mathrm{ConvLSTM}_s(|m_2 - m_1|, \ldots, |\mathrm{at}_s - m_n|),\;
        |\mathrm{at}_s(\text{student}) - \mathrm{at}_s(\text{teacher})| \big)

    with :math:`m_1 \ldots m_n` the memories of the same samples, oldest first, and the last
    increment from the last memory to the student as it is now. Gradients reach the student through
    both sides, the prediction by its last increment and the target; they reach the Conv-LSTMs
    through the prediction. Memories and teacher are constants.

    Args:
        dimensions: of each stage's maps, 1 or 2.
        schedule: when to store and when to review.
        hidden: channels of each Conv-LSTM.
        kernel: width of its convolutions.
    """

    def __init__(
        self,
        dimensions: Sequence[int],
        schedule: Schedule | None = None,
        hidden: int = 8,
        kernel: int = 3,
    ) -> None:
        super().__init__()
        self.schedule = schedule or Schedule()
        self.predictors = nn.ModuleList(ConvLSTM(d, hidden, kernel) for d in dimensions)
        self.memory = Memory(self.schedule.memories)

    def forward(
        self, epoch: int, keys: Sequence[Key], student: Sequence[Tensor], teacher: Sequence[Tensor]
    ) -> Tensor:
        """Store or review a batch, or do nothing, as the schedule has it.

        Args:
            epoch: the number of the epoch, from 0.
            keys: what tells each sample of the batch from all others.
            student: attention maps, for each stage ``(batch, *spatial)``.
            teacher: the same of the teacher; brought to the student's size where it differs.

        Returns:
            The review's loss, a scalar; zero in all other epochs, and where no sample of the
            batch has been seen in all memory epochs.
        """
        role = self.schedule.role(epoch)
        if role == "memory":
            self.memory.store(epoch, keys, student)
        if role == "review":
            return self.review(keys, student, teacher)
        return student[0].new_zeros(())

    def review(
        self, keys: Sequence[Key], student: Sequence[Tensor], teacher: Sequence[Tensor]
    ) -> Tensor:
        """The loss of a review epoch on a batch; see :meth:`forward`."""
        places, remembered = self.memory.recall(keys)
        if not places:
            return student[0].new_zeros(())
        terms = []
        for predict, past, ours, theirs in zip(
            self.predictors, remembered, student, teacher, strict=True
        ):
            now = ours[places]
            target = gap(now, resized(theirs[places], now.shape[1:]))
            predicted = predict(increments(torch.cat([past.to(now), now.unsqueeze(0)])))
            terms.append(F.mse_loss(predicted, target))
        return torch.stack(terms).sum()

    def state(self) -> dict[str, Tensor]:
        """Weights and memories, flat, for a checkpoint of tensors alone."""
        weights = {f"weights.{name}": value for name, value in self.state_dict().items()}
        return weights | {f"memory.{k}": v for k, v in self.memory.state().items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what :meth:`state` told."""
        self.load_state_dict(_below("weights.", state))
        self.memory.load_state(_below("memory.", state))


def _below(prefix: str, saved: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in saved.items() if k.startswith(prefix)}
