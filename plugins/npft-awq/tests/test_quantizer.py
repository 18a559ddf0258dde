"""The quantizer as a user meets it."""

from __future__ import annotations

from types import MethodType

import pytest
import torch
from tiny import CONFIGS, tiny_model, tiny_tokens

from npft.artifacts import LanguageModel
from npft.errors import NpftError, Unavailable
from npft.plugins import discover
from npft.testing import check_quantizer
from npft_awq.quantizer import AWQ


@pytest.mark.parametrize(
    "options",
    [{}, {"clip": False}, {"group_size": 16, "grid": 3}, {"group_size": 0}, {"bits": 3}],
)
def test_contract(options: dict[str, int]) -> None:
    check_quantizer(AWQ(**options))


def test_it_is_found() -> None:
    entry = discover().find("quantizer", "awq")
    assert entry.package == "npft-awq"
    assert set(entry.options()) == {"bits", "group_size", "grid", "clip", "samples", "format"}


def error(model: LanguageModel, quantizer: AWQ, tokens: torch.Tensor) -> float:
    quantized = quantizer.quantize(model, tokens.split(4)).model
    with torch.no_grad():
        difference = quantized.network(tokens).logits - model.network(tokens).logits
    return float(difference.square().mean())


@pytest.mark.parametrize("architecture", CONFIGS)
def test_every_family_and_dtype(architecture: str) -> None:
    """At 8 bits what is left is rounding: predictions stay, so no scale was lost on the way."""
    model, tokens = tiny_model(architecture), tiny_tokens()
    coarse = error(model, AWQ(bits=3, group_size=16), tokens)
    fine = error(model, AWQ(bits=8, group_size=16), tokens)
    assert fine < coarse / 100
    model.network.to(torch.bfloat16)
    quantized = AWQ(group_size=16).quantize(model, [tokens])
    assert next(quantized.model.network.parameters()).dtype == torch.bfloat16
    for name, packed in quantized.weights.items():
        runs_on = quantized.model.layers[name].weight
        assert torch.equal(runs_on, packed.dequantize().bfloat16())


def test_only_so_many_windows_are_used() -> None:
    model, tokens = tiny_model(), tiny_tokens(8)

    def codes(count: int, samples: int) -> torch.Tensor:
        quantizer = AWQ(group_size=16, samples=samples)
        quantized = quantizer.quantize(model, tokens[:count].split(2))
        return torch.cat([weight.codes.flatten() for weight in quantized.weights.values()])

    assert torch.equal(codes(8, 3), codes(3, 8))
    assert not torch.equal(codes(8, 3), codes(8, 8))


def test_no_calibration_is_refused() -> None:
    with pytest.raises(NpftError, match="awq has no calibration windows"):
        AWQ(group_size=16).quantize(tiny_model(), [])


def test_a_group_size_that_does_not_divide_is_refused() -> None:
    with pytest.raises(NpftError, match="awq with group_size=64 cannot quantize 12 layers"):
        AWQ().check(tiny_model())


@pytest.mark.parametrize(
    "options", [{"grid": 0}, {"samples": 0}, {"group_size": -1}, {"alpha": 1}, {"format": "gptq"}]
)
def test_bad_options_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        AWQ(**options)


def test_layers_that_no_token_reaches_are_named() -> None:
    model = tiny_model()
    mlp = model.network.model.layers[1].mlp
    mlp.forward = MethodType(lambda self, hidden: self.down_proj(self.up_proj(hidden)), mlp)
    quantized = AWQ(group_size=16).quantize(model, [tiny_tokens()])
    assert quantized.notes == (
        "the first 32 calibration tokens do not reach model.layers.1.mlp.gate_proj: not scaled",
    )


def test_outputs_that_overflow_are_named_and_not_scaled() -> None:
    model = tiny_model()
    model.network.half()
    model.network.model.layers[1].mlp.up_proj.weight.mul_(1e5)
    quantized = AWQ(group_size=16).quantize(model, [tiny_tokens()])
    assert quantized.notes == (
        "the output of model.layers.1 overflows on the calibration windows: mlp.gate_proj, "
        "mlp.up_proj not scaled",
        "the output of model.layers.1 overflows on the calibration windows: mlp.down_proj not "
        "scaled",
    )
    theirs = model.network.model.layers[1].post_attention_layernorm.weight
    assert torch.equal(
        quantized.model.network.model.layers[1].post_attention_layernorm.weight, theirs
    )


def test_weights_that_no_table_holds_are_refused() -> None:
    model = tiny_model()
    model.network.model.layers[1].mlp.down_proj.weight[3, 5] = 1e9
    with pytest.raises(NpftError, match="do not fit a 16-bit table"):
        AWQ(group_size=16).quantize(model, [tiny_tokens()])


def test_blocks_that_are_no_chain_are_refused() -> None:
    model = tiny_model()
    model.network.model.layers[1].register_forward_pre_hook(lambda module, args: (args[0] * 2,))
    with pytest.raises(Unavailable, match="its blocks do not hand their output straight"):
        AWQ(group_size=16).quantize(model, [tiny_tokens()])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_on_cuda_as_on_the_cpu() -> None:
    model, tokens = tiny_model(), tiny_tokens()
    here = AWQ(group_size=16).quantize(model, [tokens])
    model.network.cuda()
    there = AWQ(group_size=16).quantize(model, [tokens.cuda()])
    assert there.model.device.type == "cuda"
    for name, packed in here.weights.items():
        same = packed.codes == there.weights[name].codes.cpu()
        assert float(same.float().mean()) > 0.99
