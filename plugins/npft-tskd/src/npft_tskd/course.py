"""Temporal supervision of a language model whose training loop knows nothing of it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from npft.errors import NpftError
from npft.seeding import isolated_rng
from npft_tskd.attention import attention_map
from npft_tskd.review import Review
from npft_tskd.schedule import Schedule


class Course:
    """One tuning's memories and Conv-LSTMs, which learn by an optimizer of their own.

    A window is known again by its tokens, and a stage is the hidden states after one block. In a
    review the Conv-LSTMs first take their steps on the batch, with the student held fixed; then
    they are constants in the loss that the student gets.

    Attributes:
        epoch: the pass over the windows that goes on, from 0.
    """

    def __init__(
        self,
        schedule: Schedule,
        *,
        stages: int,
        sink: int,
        hidden: int,
        fits: int,
        lr: float,
        seed: int,
    ) -> None:
        self.epoch = 0
        self._stages = stages
        self._sink = sink
        self._fits = fits
        with isolated_rng(seed, "tskd"), torch.device("cpu"):
            self._review = Review([1] * stages, schedule, hidden)
        self._optimizer = torch.optim.Adam(self._review.parameters(), lr=lr)

    def __call__(
        self, tokens: Tensor, student: Sequence[Tensor], original: Sequence[Tensor]
    ) -> Tensor:
        """The review's loss on a batch; zero where there is nothing to review.

        Args:
            tokens: ``(batch, context)``.
            student: hidden states ``(batch, context, features)``: of the embeddings, and after
                each block.
            original: the original model's.
        """
        self._move(tokens.device)
        keys = [digest(window) for window in tokens]
        ours, theirs = self._maps(student), self._maps(original)
        if self._review.schedule.role(self.epoch) == "review":
            self._fit(keys, [maps.detach() for maps in ours], theirs)
        self._review.requires_grad_(False)
        loss: Tensor = self._review(self.epoch, keys, ours, theirs)
        return loss

    def _fit(self, keys: list[str], ours: list[Tensor], theirs: list[Tensor]) -> None:
        self._review.requires_grad_(True)
        for _ in range(self._fits):
            loss = self._review.review(keys, ours, theirs)
            if not loss.requires_grad:
                return
            self._optimizer.zero_grad()
            loss.backward()
            self._optimizer.step()

    def _maps(self, states: Sequence[Tensor]) -> list[Tensor]:
        """Attention maps ``(batch, tokens)`` of the stages, the first tokens left out."""
        context = states[0].shape[1]
        if context <= self._sink:
            raise NpftError(
                f"tskd leaves out the first {self._sink} tokens of windows of {context}: lower "
                "sink or take longer windows"
            )
        chosen = spread(len(states) - 1, self._stages)
        return [attention_map(states[block][:, self._sink :], channel_dim=-1) for block in chosen]

    def state(self) -> dict[str, Tensor]:
        """All that the reviews to come depend on, as flat tensors; the epoch among them."""
        moments = {
            f"moments.{index}.{name}": value
            for index, values in self._optimizer.state_dict()["state"].items()
            for name, value in values.items()
        }
        return {"epoch": torch.tensor(self.epoch)} | moments | self._review.state()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what :meth:`state` told."""
        self.epoch = int(state["epoch"])
        self._review.load_state(state)
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in state.items():
            if key.startswith("moments."):
                _, index, name = key.split(".")
                moments.setdefault(int(index), {})[name] = value
        self._optimizer.load_state_dict(self._optimizer.state_dict() | {"state": moments})

    def _move(self, device: torch.device) -> None:
        """Bring the Conv-LSTMs, and what their optimizer knows, to where the student is."""
        if next(self._review.parameters()).device != device:
            self._review.to(device)
            self._optimizer.load_state_dict(self._optimizer.state_dict())


def spread(blocks: int, stages: int) -> list[int]:
    """Which hidden states are the stages: ``stages`` of 1 to ``blocks - 1``, evenly, the last in.

    The last block's are left out, as models hand them out after the final norm, which makes them
    equally large at every token. A model of fewer blocks gives some of them several times, so that
    there are always as many stages.
    """
    last = max(1, blocks - 1)
    return [max(1, round(last * (stage + 1) / stages)) for stage in range(stages)]


def digest(window: Tensor) -> str:
    """What tells a window ``(context,)`` from all others: a digest of its tokens."""
    return hashlib.sha256(window.cpu().long().numpy().tobytes()).hexdigest()[:32]
