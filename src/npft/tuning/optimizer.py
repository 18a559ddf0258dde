"""AdamW on an adapter, and how its learning rate rises and falls."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from npft.tuning.settings import Tuning


def make(
    parameters: Sequence[nn.Parameter], settings: Tuning, steps: int
) -> tuple[AdamW, LambdaLR]:
    """AdamW on the adapter, with a schedule that reaches zero after ``steps``.

    It is the fused one, which can leave a step out on the device (``found_inf``).
    """
    optimizer = AdamW(parameters, lr=settings.lr, weight_decay=settings.weight_decay, fused=True)
    return optimizer, LambdaLR(optimizer, linear_schedule(settings, steps))


def linear_schedule(settings: Tuning, steps: int) -> Callable[[int], float]:
    """Rise over the warm-up share of the steps, then fall to zero, both linearly."""
    rising = max(1, round(settings.warmup * steps))

    def factor(step: int) -> float:
        if step < rising:
            return (step + 1) / rising
        return (steps - step) / max(1, steps - rising)

    return factor
