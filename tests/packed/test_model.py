"""Packed models predict what their dequantized models do, whatever the architecture."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from packed_samples import codebook_weight
from tiny import CONFIGS, tiny_model, tiny_tokens

from npft.artifacts import QuantizedModel
from npft.errors import NpftError
from npft.packed.linear import SharedInput
from npft.packed.model import pack_model, packed_layers, shared_inputs
from npft.quantizers.kmeans import KMeans
from npft.quantizers.rtn import RTN


@pytest.mark.parametrize("architecture", CONFIGS)
def test_packed_predicts_as_dequantized(architecture: str) -> None:
    model = tiny_model(architecture)
    quantized = RTN(bits=4, group_size=32).quantize(model, [])
    packed = pack_model(quantized).network
    for tokens in (tiny_tokens(1, 2), tiny_tokens(2, 40)):
        expected = quantized.model.network(tokens).logits
        torch.testing.assert_close(packed(tokens).logits, expected, rtol=1e-4, atol=1e-4)
    inside = {layer.out_features for layer in packed_layers(packed)}
    assert inside
    assert not any(type(module) is torch.nn.Linear for module in blocks(packed).modules())


def blocks(network: torch.nn.Module) -> torch.nn.ModuleList:
    lists = [m for m in network.modules() if isinstance(m, torch.nn.ModuleList)]
    return max(lists, key=lambda found: sum(1 for _ in found.modules()))


def test_k_means() -> None:
    model = tiny_model()
    known = {name: torch.ones_like(layer.weight) for name, layer in model.layers.items()}
    quantized = KMeans(bits=3).quantize(model, [], known)
    packed = pack_model(quantized).network
    tokens = tiny_tokens(1, 3)
    expected = quantized.model.network(tokens).logits
    torch.testing.assert_close(packed(tokens).logits, expected, rtol=1e-4, atol=1e-4)


def test_what_shares_an_input_is_found_by_running() -> None:
    groups = shared_inputs(tiny_model("Llama"))
    first = "model.layers.0."
    assert groups[0] == [f"{first}self_attn.{name}_proj" for name in ("q", "k", "v")]
    assert groups[1] == [f"{first}mlp.{name}_proj" for name in ("gate", "up")]
    assert len(groups) == 4
    packed = pack_model(RTN(bits=4).quantize(tiny_model("Llama"), [])).network
    assert sum(isinstance(layer, SharedInput) for layer in packed_layers(packed)) == 4


def test_the_quantized_model_stays_as_it_is() -> None:
    quantized = RTN(bits=4).quantize(tiny_model(), [])
    tokens = tiny_tokens(1, 8)
    before = quantized.model.network(tokens).logits
    pack_model(quantized)
    assert torch.equal(quantized.model.network(tokens).logits, before)


@pytest.mark.parametrize("architecture", ["Llama", "GPT2"])
def test_generates_the_same_tokens(architecture: str) -> None:
    quantized = RTN(bits=4).quantize(tiny_model(architecture), [])
    packed = pack_model(quantized)
    new = packed.tokens("hello", 12)
    ids = packed.encode("hello")[None]
    whole = quantized.model.network.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12
    )
    assert torch.equal(new, whole[0, ids.shape[1] :])
    assert packed.generate("hello", 12) == packed.decode(new)


def test_refusals() -> None:
    packed = pack_model(RTN(bits=4).quantize(tiny_model(), []))
    with pytest.raises(NpftError, match="the prompt has no tokens"):
        packed.generate("", 4)
    with pytest.raises(NpftError, match="0 tokens were asked for"):
        packed.tokens("x", 0)
    with pytest.raises(NpftError, match="has no tokenizer"):
        replace(packed, tokenizer=None).generate("x", 4)


def test_a_layer_without_kernels_is_named() -> None:
    model = tiny_model()
    name, layer = next(iter(model.layers.items()))
    weight = codebook_weight(5, layer.out_features, layer.in_features)
    quantized = QuantizedModel(model, {name: weight}, "mine", 5)
    with pytest.raises(NpftError, match=rf"layer {name}: codebooks of 5 bits"):
        pack_model(quantized)
