"""The contract of scorers."""

from __future__ import annotations

import weakref

import torch
from torch import Tensor

from npft.artifacts import LanguageModel
from npft.contracts import Scorer
from npft.testing.models import devices, small_models, tokens
from npft.testing.promises import check_class, left_alone, model_left_alone, require, same


def check_scorer(scorer: Scorer) -> None:
    """Check a scorer against :class:`npft.contracts.Scorer`.

    Raises:
        AssertionError: options are not validated; layers are left out or out of order; a
            sensitivity has the wrong shape, dtype or device, is negative, NaN or infinite, or
            shares memory with the model; yielded tensors are kept; two runs differ; it says that
            it sums over windows, and those of two shares and of none do not add up; the model
            changes, or keeps hooks or gradients; the global random state is touched.
    """
    check_class(scorer, Scorer)
    for device in devices():
        batches = list(tokens(device).split(2))
        for dtype in (torch.float32, torch.bfloat16):
            for model in small_models(device=device, dtype=dtype):
                _check_scores(scorer, model, batches)


def _check_scores(scorer: Scorer, model: LanguageModel, batches: list[Tensor]) -> None:
    with left_alone(scorer, *batches), model_left_alone(scorer, model):
        first = _stream(scorer, model, batches)
    require(list(first) == list(model.layers), scorer, "must yield every layer once, in order")
    second = _stream(scorer, model, batches)
    equal = all(same(first[name], second[name]) for name in first)
    require(equal, scorer, "gives other scores for the same model and batches")
    if scorer.sums_over_windows:
        _check_sums(scorer, model, batches, first)


def _check_sums(
    scorer: Scorer, model: LanguageModel, batches: list[Tensor], whole: dict[str, Tensor]
) -> None:
    parts = [_stream(scorer, model, some) for some in (batches[:1], batches[1:], [])]
    for name, values in whole.items():
        summed = sum(part[name].double() for part in parts)
        close = torch.allclose(values.double(), summed, rtol=1e-3, atol=1e-5 * float(values.max()))  # type: ignore[arg-type]
        require(close, scorer, f"sums_over_windows, but not in {name}: leave it False")


def _stream(scorer: Scorer, model: LanguageModel, batches: list[Tensor]) -> dict[str, Tensor]:
    """Copies of all scores, checking each while it passes."""
    copies: dict[str, Tensor] = {}
    previous: weakref.ref[Tensor] | None = None
    stream = iter(scorer.score(model, batches))
    while (item := next(stream, None)) is not None:
        name, sensitivity = item
        kept = previous is not None and previous() is not None
        require(not kept, scorer, "keeps tensors that it has yielded: let each go")
        _check_one(scorer, model, name, sensitivity)
        copies[name] = sensitivity.clone()
        previous = weakref.ref(sensitivity)
        del item, sensitivity
    return copies


def _check_one(scorer: Scorer, model: LanguageModel, name: str, sensitivity: Tensor) -> None:
    require(name in model.layers, scorer, f"yields {name!r}, which is no layer of the model")
    weight = model.layers[name].weight
    require(
        sensitivity.shape == weight.shape and sensitivity.dtype == torch.float32,
        scorer,
        f"yields {tuple(sensitivity.shape)} {sensitivity.dtype} for {name}, whose weight is "
        f"{tuple(weight.shape)}: give float32 of the weight's shape (out, in)",
    )
    require(
        sensitivity.device == weight.device,
        scorer,
        f"yields scores on {sensitivity.device} for {name}, which is on {weight.device}",
    )
    require(not sensitivity.requires_grad, scorer, f"yields scores of {name} with a gradient")
    shared = sensitivity.untyped_storage().data_ptr() == weight.untyped_storage().data_ptr()
    require(not shared, scorer, f"yields the memory of {name} itself: give a copy")
    fine = bool((torch.isfinite(sensitivity) & (sensitivity >= 0)).all())
    require(fine, scorer, f"yields negative, NaN or infinite scores for {name}")
