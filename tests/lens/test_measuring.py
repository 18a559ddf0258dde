"""The rows of the lens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from refusals import refusal
from tiny import tiny_model, tiny_tokens
from torch import Tensor
from watching import Watching

from npft.artifacts import LanguageModel, PackedWeight, QuantizedModel
from npft.evaluation.quality import Original, evaluate
from npft.lens.kinds import kinds
from npft.lens.measuring import CLIPPED, Row, Settings, look
from npft.progress import Progress, Silent
from npft.quantizers import RTN, KMeans, Nonuniform
from npft.scorers import Fisher

TOKENS = tiny_tokens(6, 24)
TEXTS = {"one": TOKENS[:4], "two": TOKENS[4:]}


def rows(
    settings: Settings,
    *quantizers,
    texts=None,
    model: LanguageModel | None = None,
    progress: Progress | None = None,
):
    return look(
        model or tiny_model(),
        {"text": TOKENS} if texts is None else texts,
        settings,
        progress or Silent(),
        quantizers,
        [tiny_tokens(2, 24, seed=5)],
        Fisher(),
    )


def own(found: Sequence[Row], kind: str) -> Row:
    return next(row for row in found if row.kind == kind and row.intensity is None)


def test_every_kind_at_every_intensity_on_every_target_and_text() -> None:
    settings = Settings(targets=["weights", "activations", "both"], intensities=[0.1, 0.2])
    found = rows(settings, RTN(bits=4), texts=TEXTS)
    expected = {("weights", "none", None, text) for text in TEXTS}
    for target in settings.targets:
        for text in TEXTS:
            for kind in (*kinds(0.01), "rtn-4"):
                expected |= {(target, kind, value, text) for value in (0.1, 0.2)}
            for kind in ("rtn-4", *(f"clip-{share:.1%}" for share in CLIPPED)):
                expected.add((target, kind, None, text))
    keys = [(row.target, row.kind, row.intensity, row.dataset) for row in found]
    assert set(keys) == expected
    assert len(keys) == len(expected)
    for row in found:
        if row.intensity is not None:
            assert row.norm == pytest.approx(row.intensity, rel=1e-3)


def test_the_model_is_left_alone_and_the_unperturbed_row_is_its_own() -> None:
    model = tiny_model()
    before = {name: value.clone() for name, value in model.network.state_dict().items()}
    found = rows(Settings(intensities=[0.5]), model=model)
    assert all(torch.equal(v, before[n]) for n, v in model.network.state_dict().items())
    clean = next(row for row in found if row.kind == "none")
    assert clean.kl == 0
    assert clean.perplexity == evaluate(model, Original(model, TOKENS)).perplexity
    assert (clean.tokens, clean.context) == (6 * 23, 24)


def test_same_seed_same_rows_and_other_kinds_do_not_move_them() -> None:
    settings = Settings(intensities=[0.1], only=["gaussian", "growing"])
    first = rows(settings)
    assert rows(settings) == first
    alone = rows(replace(settings, only=["growing"]))
    assert [row for row in first if row.kind == "growing"] == [
        row for row in alone if row.kind == "growing"
    ]
    others = rows(replace(settings, seed=1))
    assert all(a.kl != b.kl for a, b in zip(first, others, strict=True) if a.kind == "gaussian")


@pytest.mark.parametrize("kind", ["gaussian", "rademacher", "growing"])
@pytest.mark.parametrize("target", ["weights", "activations"])
def test_small_perturbations_cost_by_their_square(kind: str, target) -> None:
    """KL has its minimum, 0, at no perturbation."""
    settings = Settings(targets=[target], intensities=[0.002, 0.004], only=[kind])
    small, double = (row.kl for row in rows(settings) if row.kind == kind)
    assert double / small == pytest.approx(4, rel=0.25)


def test_a_quantizers_residual_is_the_quantized_model() -> None:
    model = tiny_model()
    for quantizer in (RTN(bits=3), Nonuniform(bits=4), KMeans(bits=3)):
        found = own(
            rows(Settings(["weights"], [0.1], only=["gaussian"]), quantizer), quantizer.label
        )
        known = dict(Fisher().score(model, [tiny_tokens(2, 24, seed=5)]))
        quantized = quantizer.quantize(model, [], known).model
        expected = evaluate(quantized, Original(model, TOKENS))
        assert found.kl == pytest.approx(expected.kl, rel=1e-4)
        weights = [layer.weight for layer in model.layers.values()]
        others = [layer.weight for layer in quantized.layers.values()]
        ratios = [float((b - a).norm() / a.norm()) for a, b in zip(weights, others, strict=True)]
        assert found.norm == pytest.approx(math.fsum(ratios) / len(ratios), rel=1e-4)


class NormsToo(RTN):
    """Also changes what is no linear layer."""

    name = "norms-too"

    def quantize_weight(self, weight: Tensor, sensitivity: Tensor | None) -> PackedWeight:
        return super().quantize_weight(weight, sensitivity)

    def quantize(self, *arguments, **named) -> QuantizedModel:
        quantized = super().quantize(*arguments, **named)
        quantized.model.network.model.norm.weight.data.mul_(2)
        return quantized


def test_what_cannot_be_looked_at_is_refused() -> None:
    refusal(lambda: Settings(intensities=[0.1, 1.5]), "0.1, 1.5", "below 1")
    refusal(lambda: Settings(intensities=[]), "(none)")
    refusal(lambda: Settings(share=0), "share=0")
    refusal(lambda: Settings(only=["pink"]), "'pink'", "gaussian")


def test_what_a_quantizer_cannot_do_is_noted_and_the_rest_is_measured() -> None:
    watching = Watching()
    every = ["weights", "activations", "both"]
    settings = Settings(every, [0.1], only=["gaussian"])
    found = rows(settings, KMeans(bits=3), NormsToo(bits=4), RTN(bits=4), progress=watching)
    for kind, targets in [("kmeans-3", ["weights"]), ("norms-too-4", []), ("rtn-4", every)]:
        assert [row.target for row in found if row.kind == kind and not row.intensity] == targets
    told = [("kmeans-3", "activations"), ("norms-too-4", "activations"), ("norms-too-4", "norm.w")]
    for note, words in zip(watching.notes, told, strict=True):
        assert all(word in note for word in words)
    assert watching.done["lens"] == [17, 19]
    alone = rows(settings, RTN(bits=4))
    assert [r for r in found if r.kind == "rtn-4"] == [r for r in alone if r.kind == "rtn-4"]
