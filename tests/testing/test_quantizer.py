"""Quantizers that break a promise are found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
from counting import fresh
from torch import Tensor

from npft.artifacts import LanguageModel, PackedWeight, QuantizedModel, UniformWeight
from npft.contracts import Quantizer
from npft.quantizers import RTN
from npft.testing import check_quantizer


class Partial(RTN):
    def quantize(self, model: LanguageModel, *given: Any) -> QuantizedModel:
        done = super().quantize(model, *given)
        first = next(iter(done.weights))
        return replace(done, weights={n: w for n, w in done.weights.items() if n != first})


class Overflowing(RTN):
    def quantize_weight(self, weight: Tensor, sensitivity: Tensor | None) -> PackedWeight:
        return RTN(bits=self.bits + 1).quantize_weight(weight, sensitivity)


class Pretending(RTN):
    def quantize(self, model: LanguageModel, *given: Any) -> QuantizedModel:
        return replace(super().quantize(model, *given), model=model.copy())


class InPlace(RTN):
    def quantize(self, model: LanguageModel, *given: Any) -> QuantizedModel:
        done = super().quantize(model, *given)
        for name, layer in model.layers.items():
            layer.weight.copy_(done.weights[name].dequantize())
        return replace(done, model=model)


class Sparse(RTN):
    def quantize(self, *given: Any) -> QuantizedModel:
        return replace(super().quantize(*given), bits=2)


class Stochastic(RTN):
    def quantize_weight(self, weight: Tensor, sensitivity: Tensor | None) -> PackedWeight:
        noise = torch.rand(weight.shape, generator=torch.Generator().manual_seed(fresh()))
        return super().quantize_weight(weight + 0.1 * noise, sensitivity)


class CodesElsewhere(RTN):
    def quantize(self, *given: Any) -> QuantizedModel:
        done = super().quantize(*given)
        weights: Any = done.weights
        moved = {n: replace(w, codes=w.codes.to("meta")) for n, w in weights.items()}
        return replace(done, weights=moved)


class Shifted(UniformWeight):
    """Stands for something that no format stores."""

    def dequantize_dense(self) -> Tensor:
        return super().dequantize_dense() + 0.125


class Forgetting(RTN):
    def quantize_weight(self, weight: Tensor, sensitivity: Tensor | None) -> PackedWeight:
        packed: Any = super().quantize_weight(weight, sensitivity)
        return Shifted(packed.codes, packed.scale, packed.zero, packed.bits, packed.group_size)


class Unheard(RTN):
    @property
    def checkpoint_format(self) -> str:
        return "zip"


class Nested(RTN):
    @property
    def variant(self) -> str:
        return "a/b"


class Renamed(RTN):
    def quantize(self, *given: Any) -> QuantizedModel:
        return replace(super().quantize(*given), variant="other")


class Straying(RTN):
    def follow(
        self, weight: Tensor, sensitivity: Tensor | None
    ) -> Callable[[Tensor], PackedWeight]:
        return lambda moved: self.quantize_weight(1.1 * moved, sensitivity)


class Dragging(RTN):
    def follow(
        self, weight: Tensor, sensitivity: Tensor | None
    ) -> Callable[[Tensor], PackedWeight]:
        return lambda moved: self.quantize_weight(moved.mul_(2), sensitivity)


class Keeping(RTN):
    keeps_layers: ClassVar[bool] = True

    def quantize(self, *given: Any) -> QuantizedModel:
        return super().quantize(*given)


class Training(RTN):
    def check(self, model: LanguageModel) -> None:
        model.network.train()


class Seeding(RTN):
    def quantize(self, *given: Any) -> QuantizedModel:
        torch.manual_seed(0)
        return super().quantize(*given)


@pytest.mark.parametrize(
    ("quantizer", "message"),
    [
        (Partial(), "a packed weight for every layer"),
        (Overflowing(), r"below 2\*\*bits"),
        (Pretending(), "other weights in the runnable model"),
        (InPlace(), "changes the weights of the model"),
        (Sparse(), "average bits and 2 bits for 4"),
        (Stochastic(), "other codes for the same model"),
        (CodesElsewhere(), "on meta and cpu, not on cpu"),
        (Forgetting(), "so that other weights are read back"),
        (Unheard(), "has the format 'zip', which is unknown"),
        (Nested(), "'rtn-4-a/b', which is no folder's name"),
        (Renamed(), "is called rtn-4, and its result rtn-4-other"),
        (Straying(), "follows a matrix that stands still"),
        (Dragging(), "changes a tensor that it was given"),
        (Keeping(), "a run would pass over its quantize"),
        (Training(), "leaves hooks, gradients or another mode"),
        (Seeding(), "touches a global random state"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Quantizer) else "",
)
def test_broken_quantizers_are_found(quantizer: Quantizer, message: str) -> None:
    with pytest.raises(AssertionError, match=f"{type(quantizer).__name__} .*{message}"):
        check_quantizer(quantizer)


def test_a_good_one_passes() -> None:
    check_quantizer(RTN(bits=3, group_size=24))


def test_a_format_that_has_no_place_for_the_model_is_no_breach() -> None:
    """3 bits are not what compressed-tensors packs; GPT-2's layers neither."""
    check_quantizer(RTN(bits=3, format="compressed-tensors"))
