"""The contract of quantizers."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from npft import checkpoints
from npft.artifacts import LanguageModel, PackedWeight, QuantizedModel
from npft.contracts import Quantizer
from npft.seeding import generator
from npft.testing.models import devices, small_models, tokens
from npft.testing.promises import check_class, left_alone, model_left_alone, require


def check_quantizer(quantizer: Quantizer) -> None:
    """Check a quantizer against :class:`npft.contracts.Quantizer`.

    Raises:
        AssertionError: options are not validated; layers are left out; codes are not uint8 of the
            weight's shape below ``2**bits``, on the model's device; the runnable model has other
            weights than the packed ones stand for, or gives NaN; average bits are below the bits;
            two runs differ; what is saved is not what is read back, unless the format says that
            it has no place for such a model; ``follow`` disagrees with ``quantize_weight``;
            layers are kept of a quantizer of whole models; the given model changes; the global
            random state is touched.
        NpftError: it cannot quantize the small models at all.
    """
    check_class(quantizer, Quantizer)
    plain = Path(quantizer.label).name == quantizer.label
    require(plain, quantizer, f"has the label {quantizer.label!r}, which is no folder's name")
    own = type(quantizer).quantize is not Quantizer.quantize
    require(
        not (own and quantizer.keeps_layers),
        quantizer,
        "keeps layers, which goes with quantize_weight alone: a run would pass over its quantize",
    )
    group = quantizer.group_size_or_zero
    width = math.lcm(32, group) if group else 32
    for device in devices():
        for model in small_models(width, device):
            _check_model(quantizer, model, device)


def _check_model(quantizer: Quantizer, model: LanguageModel, device: str) -> None:
    random_scores = generator(0, "scores")
    scores = {
        name: torch.rand(layer.weight.shape, generator=random_scores).to(device)
        for name, layer in model.layers.items()
    }
    given = scores if quantizer.needs_sensitivity else None
    batches = list(tokens(device).split(2))
    with (
        left_alone(quantizer, *batches, *scores.values()),
        model_left_alone(quantizer, model),
    ):
        quantizer.check(model)
        first = quantizer.quantize(model, batches, given)
    _check_quantized(quantizer, model, first)
    second = quantizer.quantize(model, batches, given)
    equal = all(
        _same_codes(weight.codes, second.weights[name].codes)
        for name, weight in first.weights.items()
    )
    require(equal, quantizer, "gives other codes for the same model")
    _check_saved(quantizer, first)
    if type(quantizer).quantize_weight is not Quantizer.quantize_weight:
        for name, layer in list(model.layers.items())[:2]:
            sensitivity = scores[name] if given is not None else None
            _check_follow(quantizer, layer.weight.float(), sensitivity)


def _same_codes(one: Tensor, other: Tensor) -> bool:
    """Equal on the CPU; on CUDA, where sums have no order, few may fall to the other side."""
    differing = float((one != other).float().mean())
    return differing <= (0.0 if one.device.type == "cpu" else 0.01)


def _check_quantized(quantizer: Quantizer, model: LanguageModel, result: QuantizedModel) -> None:
    require(
        isinstance(result, QuantizedModel) and set(result.weights) == set(model.layers),
        quantizer,
        "must return a QuantizedModel with a packed weight for every layer",
    )
    for name, packed in result.weights.items():
        _check_layer(quantizer, model, result, name, packed)
    require(
        result.average_bits >= quantizer.bits == result.bits,
        quantizer,
        f"reports {result.average_bits} average bits and {result.bits} bits for {quantizer.bits}",
    )
    require(
        result.label == quantizer.label,
        quantizer,
        f"is called {quantizer.label}, and its result {result.label}",
    )
    require(
        bool(torch.isfinite(_logits(result)).all()), quantizer, "makes a model that predicts NaN"
    )


def _check_layer(
    quantizer: Quantizer,
    model: LanguageModel,
    result: QuantizedModel,
    name: str,
    packed: PackedWeight,
) -> None:
    given, runnable = model.layers[name].weight, result.model.layers[name].weight
    require(
        packed.codes.device == given.device == runnable.device,
        quantizer,
        f"puts {name} on {packed.codes.device} and {runnable.device}, not on {given.device}",
    )
    require(
        packed.codes.dtype == torch.uint8
        and packed.codes.shape == runnable.shape
        and int(packed.codes.max()) < 2**quantizer.bits,
        quantizer,
        f"gives {name} codes that are not uint8 (out, in) below 2**bits",
    )
    require(
        torch.equal(packed.dequantize().to(runnable.dtype), runnable),
        quantizer,
        f"leaves other weights in the runnable model than the codes of {name} stand for",
    )
    shared = runnable.data_ptr() == given.data_ptr()
    require(not shared, quantizer, f"shares the weight of {name} with the given model")


def _check_saved(quantizer: Quantizer, result: QuantizedModel) -> None:
    form = checkpoints.FORMATS.get(result.format)
    require(form is not None, quantizer, f"has the format {result.format!r}, which is unknown")
    layers = result.model.layers.values()
    if form is None or any(form.refusal(layer, quantizer.bits) for layer in layers):
        return
    with tempfile.TemporaryDirectory(prefix="npft-check-") as place:
        folder = Path(place) / result.label
        result.save(folder)
        found = checkpoints.load(folder, device=str(result.model.device))
    for name, packed in result.weights.items():
        equal = torch.equal(
            packed.dequantize(), found.weights[name].dequantize().to(packed.codes.device)
        )
        require(equal, quantizer, f"saves {name} so that other weights are read back")
    require(found.label == result.label, quantizer, f"is read back as {found.label}")


def _check_follow(quantizer: Quantizer, weight: Tensor, sensitivity: Tensor | None) -> None:
    """Where the matrix has not moved, following it is quantizing it, up to rounding."""
    given = [weight] if sensitivity is None else [weight, sensitivity]
    with left_alone(quantizer, *given):
        once = quantizer.quantize_weight(weight, sensitivity).dequantize()
        followed = quantizer.follow(weight, sensitivity)(weight).dequantize()
    error, apart = (once - weight).norm(), (once - followed).norm()
    require(
        bool(apart <= 0.01 * error),
        quantizer,
        f"follows a matrix that stands still to weights that are {float(apart):.3g} from those of "
        f"quantize_weight, whose own error is {float(error):.3g}",
    )


def _logits(result: QuantizedModel) -> Tensor:
    with torch.no_grad():
        logits: Tensor = result.model.network(tokens(str(result.model.device))).logits
    return logits
