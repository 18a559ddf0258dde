"""The real residual of a quantizer, on weights and on activations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from npft.artifacts import LanguageModel
from npft.contracts import Quantizer
from npft.errors import Unavailable
from npft.lens.applying import Change
from npft.lens.kinds import matched


def of_weights(
    model: LanguageModel,
    quantizer: Quantizer,
    calibration: Iterable[Tensor],
    sensitivities: Mapping[str, Tensor] | None,
) -> dict[str, Tensor]:
    """``Q(W) - W`` of each layer, as one float32 vector ``(1, out * in)``.

    Raises:
        Unavailable: the quantizer cannot do this model, or changes more than these weights.
    """
    quantizer.check(model)
    quantized = quantizer.quantize(model, calibration, sensitivities).model
    own = {id(layer.module.weight) for layer in model.layers.values()}
    theirs = dict(quantized.network.named_parameters())
    for name, parameter in model.network.named_parameters():
        if id(parameter) not in own and not torch.equal(parameter, theirs[name]):
            raise Unavailable(
                f"{quantizer.label} is left out of the lens: it also changes {name}, so that its "
                "residual is no perturbation of the linear layers' weights"
            )
    return {
        name: (quantized.layers[name].weight.float() - layer.weight.float()).reshape(1, -1)
        for name, layer in model.layers.items()
    }


def stored(residuals: Mapping[str, Tensor], intensity: float | None) -> Change:
    """Residuals as they are, or scaled to an intensity."""

    def change(name: str, values: Tensor) -> Tensor:
        own = residuals[name]
        return own if intensity is None else matched(own, values, intensity)

    return change


def of_tokens(quantizer: Quantizer, intensity: float | None) -> Change:
    """The residual of each token's vector, quantized per token like a weight's output channel.

    Raises:
        Unavailable: the quantizer needs more than a matrix.
    """
    alone = type(quantizer).quantize_weight is not Quantizer.quantize_weight
    whole = type(quantizer).quantize is not Quantizer.quantize
    if quantizer.needs_sensitivity or whole or not alone:
        raise Unavailable(
            f"{quantizer.label} is left out of the activations, as it needs more than a vector to "
            "quantize: rtn and nonuniform do not"
        )

    def change(_name: str, values: Tensor) -> Tensor:
        own = quantizer.quantize_weight(values, None).dequantize() - values
        return own if intensity is None else matched(own, values, intensity)

    return change
