"""Numbers gone bad, through the real parts of a run: each stops it or is left out, by name."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from listening import Listener
from recording import constant, everywhere, observed, weights_of
from refusals import refusal
from tiny import save_tiny, tiny_model, tiny_tokens

from npft import adapters, config, folder, models, pipeline, stages
from npft.artifacts import LanguageModel
from npft.errors import NotFinite, NpftError, Unavailable
from npft.evaluation.quality import Original, evaluate
from npft.objectives import KL, CrossEntropy
from npft.outliers import select
from npft.plugins import discover
from npft.quantizers import RTN, KMeans, Nonuniform
from npft.report import page
from npft.report.reading import read_run
from npft.samplers import Residual, StepUniform
from npft.scorers import Fisher
from npft.tuning import Tuning, control, tune

LAYER = "model.layers.1.mlp.up_proj"

QUANTIZERS = [
    RTN(bits=4),
    RTN(bits=3, group_size=8),
    KMeans(bits=3),
    Nonuniform(bits=3, search=True),
]


def settings(**changes: Any) -> Tuning:
    return Tuning(**{"epochs": 2, "batch_size": 2, "rank": 2, "lr": 1e-2, **changes})


def broken_at(*steps: int) -> Any:
    """An objective whose loss is NaN at some calls."""
    calls = iter(range(10**6))

    def see(student: Any, *_: object) -> None:
        if next(calls) in steps:
            student.logits = student.logits * math.nan

    return observed(see)


# The loss, the gradients


def test_a_bad_loss_stops_and_names_the_layer() -> None:
    model = tiny_model()
    model.layers[LAYER].weight[3, 4] = math.inf
    sentence = refusal(
        lambda: control(model, tiny_tokens(), CrossEntropy(), settings()),
        "step 0: the tuning loss became nan", f"first in layer {LAYER}", "lower tuning.lr",
    )  # fmt: skip
    assert "layers.0" not in sentence


def test_bad_noise_names_the_layer_that_it_is_on() -> None:
    model = tiny_model()
    name = "model.layers.0.self_attn.k_proj"
    chosen = {name: everywhere(model)[name]}
    clean = weights_of(model)
    refusal(
        lambda: tune(model, tiny_tokens(), chosen, constant(math.inf), KL(), settings(beta=0)),
        f"first in layer {name}",
    )
    assert all(torch.equal(weights, clean[n]) for n, weights in weights_of(model).items())


def test_a_loss_that_is_bad_by_itself() -> None:
    refusal(
        lambda: control(tiny_model(), tiny_tokens(), broken_at(1), settings()),
        "step 1: the tuning loss became nan", "what follows the linear layers",
    )  # fmt: skip


def test_a_bad_gradient_names_the_layer() -> None:
    model = tiny_model()
    bad = model.layers[LAYER].module

    def hook(_module: Any, _inputs: Any, output: torch.Tensor) -> None:
        if output.requires_grad:
            output.register_hook(lambda gradient: gradient * math.inf)

    handle = bad.register_forward_hook(hook)
    # The layer's own adapter shares its output's gradient, and so do all that come before it.
    try:
        refusal(
            lambda: control(model, tiny_tokens(), CrossEntropy(), settings()),
            "step 0: the gradient of layer model.layers.", "is not finite",
        )  # fmt: skip
    finally:
        handle.remove()


def test_bad_steps_are_left_out_and_counted() -> None:
    """The rest is a training in which those steps have no gradient."""
    model = tiny_model()
    adapter = control(model, tiny_tokens(), broken_at(1, 2), settings(on_bad_step="skip"))
    assert [loss.skipped is not None for loss in adapter.losses] == [False, True, True, False]
    assert all(loss.clean is None for loss in adapter.losses[1:3])
    assert all(bool(values.isfinite().all()) for values in adapter.weights.values())
    adapters.merge(model, adapter)


def test_a_training_of_bad_steps_only_is_an_error() -> None:
    refusal(
        lambda: control(
            tiny_model(), tiny_tokens(), broken_at(*range(4)), settings(on_bad_step="skip")
        ),
        "control skipped all its 4 steps", "the tuning loss became nan",
    )  # fmt: skip


def run(tmp_path: Path, model: Path, **changes: Any) -> tuple[Listener, Path]:
    values = {
        "model": str(model),
        "output": str(tmp_path / "run"),
        "samples": 4,
        "context": 16,
        "eval_samples": 2,
        "quant": [{"name": "rtn"}],
        "bits": [3],
        "device": "cpu",
        **changes,
    }
    values["tuning"] = {"epochs": 1, "batch_size": 1, "rank": 2, **changes.get("tuning", {})}
    heard = Listener()
    pipeline.run(config.make(values), discover(), heard)
    return heard, tmp_path / "run"


def test_skipped_steps_are_in_the_results_and_the_report(tmp_path) -> None:
    """Noise far too wide for float16: every step that has it overflows, the others do not."""
    model = save_tiny(tmp_path / "model")
    sampler = {"name": "step-uniform", "scale": 1e5}
    tuning = {"epochs": 3, "terms": "one", "beta": 1.0, "on_bad_step": "skip"}
    _, output = run(tmp_path, model, dtype="float16", sampler=sampler, tuning=tuning)
    results = json.loads((output / "results.json").read_text())
    count = sum(loss["skipped"] is not None for loss in results["losses"]["tuned"])
    assert 0 < count < 12
    assert all(
        (loss["clean"] is None) == bool(loss["skipped"]) for loss in results["losses"]["tuned"]
    )
    (note,) = [note for note in results["notes"] if note.startswith("tuned:")]
    assert f"{count} of 12 training steps were skipped" in note
    assert note.split(":")[0] in page.render(read_run(output))


# The weights


def odd(kind: str) -> LanguageModel:
    """A model with one strange matrix."""
    model = tiny_model()
    weight = model.layers[LAYER].weight
    if kind == "zeros":
        weight.zero_()
    elif kind == "constant row":
        weight[5] = 0.25
    else:
        weight[7, 9] = 1e4
    return model


@pytest.mark.parametrize("kind", ["zeros", "constant row", "outlier"])
@pytest.mark.parametrize("quantizer", QUANTIZERS, ids=lambda q: q.label)
def test_strange_matrices_are_quantized(kind: str, quantizer: Any) -> None:
    """Zeros and constants exactly, up to float16; beside an outlier the other rows as before."""
    model, plain = odd(kind), tiny_model()
    scores = dict(Fisher().score(model, [tiny_tokens()]))
    found, before = (
        quantizer.quantize(m, [], scores).weights[LAYER].dequantize() for m in (model, plain)
    )
    weight = model.layers[LAYER].weight
    assert bool(found.isfinite().all())
    if kind == "zeros":
        assert not found.any()
    elif kind == "constant row":
        torch.testing.assert_close(found[5], weight[5], rtol=1e-3, atol=0)
    else:
        assert float(found[7, 9]) == pytest.approx(1e4, rel=1e-2)
        if not quantizer.needs_sensitivity:
            others = [row for row in range(len(weight)) if row != 7]
            assert torch.equal(found[others], before[others])


@pytest.mark.parametrize("kind", ["zeros", "constant row", "outlier"])
@pytest.mark.parametrize("sampler", [StepUniform(), Residual()], ids=lambda s: s.name)
def test_strange_matrices_are_tuned(kind: str, sampler: Any) -> None:
    model = odd(kind)
    scores = dict(Fisher().score(model, [tiny_tokens()]))
    chosen = select(scores.items(), 1.0)
    adapter = tune(model, tiny_tokens(), chosen, sampler, KL(), settings(), sensitivities=scores)
    assert not any(loss.skipped for loss in adapter.losses)
    assert evaluate(adapters.merge(model, adapter), Original(model, tiny_tokens())).kl < math.inf


def test_a_weight_that_no_table_holds_names_its_layer() -> None:
    model = tiny_model()
    model.layers[LAYER].weight[0, 0] = 1e30
    for quantizer in QUANTIZERS:
        scores = {name: torch.ones_like(x.weight) for name, x in model.layers.items()}
        refusal(lambda q=quantizer, s=scores: q.quantize(model, [], s), f"layer {LAYER}:")


# The text


def test_a_text_of_padding_alone(tmp_path) -> None:
    """Every window the same token: no information, but numbers all the same."""
    text = tmp_path / "padding.txt"
    text.write_text("\\n" * 500 + "x")
    model = save_tiny(tmp_path / "model")
    _, output = run(tmp_path, model, calibration=str(text), evaluate={"padding": str(text)})
    rows = json.loads((output / "results.json").read_text())["rows"]
    assert len(rows) == 12
    assert all(math.isfinite(row["value"]) for row in rows)


# Float16


def overflowing(folder: Path) -> Path:
    """A model whose activations do not fit float16 in one layer."""
    model = tiny_model()
    model.layers["model.layers.0.mlp.gate_proj"].weight.mul_(30)
    model.layers["model.layers.0.mlp.up_proj"].weight.mul_(30)
    model.layers["model.layers.0.mlp.down_proj"].weight.mul_(3000)
    models.save(model, folder)
    return folder


def test_an_overflow_of_float16_is_named(tmp_path) -> None:
    model = overflowing(tmp_path / "model")
    sentence = refusal(lambda: run(tmp_path, model, dtype="float16"), "layer model.layers.0")
    assert "NaN or infinite" in sentence or "not finite" in sentence
    run(tmp_path, model, dtype="float32", bits=[4])


def test_a_measurement_that_is_not_finite_is_not_written(tmp_path) -> None:
    """The original's is a mistake; a quantized model's makes the setting unavailable."""
    values = {"model": str(overflowing(tmp_path / "model")), "output": str(tmp_path / "run")}
    options = {"samples": 2, "context": 16, "eval_samples": 2, "device": "cpu", "bits": [8]}
    settings = config.make({**values, **options, "dtype": "float16", "quant": [{"name": "rtn"}]})
    parts = pipeline.plan(settings, discover())
    with folder.create(tmp_path / "run") as kept:
        work = pipeline.workspace(settings, parts, discover(), kept, Listener())
        original, references = stages.original(work), stages.originals(work)
        where = "first in layer model.layers.0.mlp.down_proj"
        refusal(lambda: stages.measure(work, references, original), "predicts what is not", where)
        quantized = stages.quantize(work, original, work.quantizers[0], keep=False)
        with pytest.raises(Unavailable, match="original rtn-8 predicts what is not finite"):
            stages.measure(work, references, original, "rtn-8", quantized)
        assert not list((tmp_path / "run" / folder.STAGES).glob("measured/**/*.json"))


def test_not_finite_is_a_mistake_like_others() -> None:
    assert issubclass(NotFinite, NpftError)
