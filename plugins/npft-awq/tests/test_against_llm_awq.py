"""Agreement with the published code, restated in llm_awq.py, on Llama blocks and single layers."""

from __future__ import annotations

import llm_awq
import pytest
import torch
from tiny import tiny_model, tiny_tokens
from torch import Tensor, nn

from npft.artifacts import LanguageModel, LinearLayer
from npft.grid import Grid
from npft.quantizers import RTN
from npft_awq.blocks import Block, Call
from npft_awq.clipping import clipped, second_moments
from npft_awq.quantizer import AWQ
from npft_awq.scaling import search
from npft_awq.structure import Group


def one_layer(inputs: int, outputs: int) -> tuple[nn.Linear, Block, Group]:
    random = torch.Generator().manual_seed(0)
    layer = nn.Linear(inputs, outputs, bias=False).requires_grad_(False)
    layer.weight.copy_(torch.randn(outputs, inputs, generator=random))
    block = Block("block", nn.Sequential(layer), {"0": LinearLayer("block.0", layer, "mlp")})
    return layer, block, Group(("0",), None)


def uneven_tokens(count: int, width: int) -> Tensor:
    """Activations ``(1, count, width)`` in which few channels are far larger than the others."""
    random = torch.Generator().manual_seed(1)
    sizes = torch.exp(1.5 * torch.randn(width, generator=random))
    return torch.randn(1, count, width, generator=random) * sizes


@pytest.mark.parametrize("bits", [3, 4])
@torch.no_grad()
def test_scales_of_one_layer(bits: int) -> None:
    layer, block, group = one_layer(128, 48)
    x = uneven_tokens(200, 128)
    before = layer.weight.clone()
    ours = search(
        block, group, [Call((x[:, :64],), {}), Call((x[:, 64:],), {})], Grid(bits, 32), 20
    )
    assert torch.equal(layer.weight, before)
    theirs = llm_awq.search_scale(layer, [layer], x, bits, 32, {})
    assert ours is not None
    torch.testing.assert_close(ours, theirs)
    assert float(theirs.max() / theirs.min()) > 2


@torch.no_grad()
def test_the_grid_begins_with_no_scaling() -> None:
    _, block, group = one_layer(128, 48)
    calls = [Call((uneven_tokens(200, 128),), {})]
    only = search(block, group, calls, Grid(4, 32), 1)
    assert only is not None
    assert torch.equal(only, torch.ones(128))


@pytest.mark.parametrize("size", [32, 128])
@torch.no_grad()
def test_clipping_of_one_layer(size: int) -> None:
    layer, block, group = one_layer(128, 64)
    layer.weight.mul_(layer.weight.abs())
    x = uneven_tokens(200, 128)
    grid = Grid(3, size)
    moments = second_moments(block, [group], [Call((x,), {})], grid)["0"]
    ours = clipped(layer.weight, moments, grid)
    limit = llm_awq.search_clip(layer.weight, x, 3, size)
    theirs = layer.weight.view(64, -1, size).clamp(-limit, limit).view(64, 128)
    torch.testing.assert_close(ours, theirs)
    assert float((theirs != layer.weight).float().mean()) > 0.005


def share(true: Tensor) -> float:
    return float(true.float().mean())


def uneven_model(kv_heads: int) -> LanguageModel:
    """A tiny Llama whose norms give some channels far more than others."""
    model = tiny_model("Llama", num_key_value_heads=kv_heads)
    random = torch.Generator().manual_seed(2)
    for name, parameter in model.network.named_parameters():
        if name.endswith("layernorm.weight"):
            parameter.mul_(torch.exp(torch.randn(parameter.shape, generator=random)))
    return model


@pytest.mark.parametrize("kv_heads", [4, 2])
@torch.no_grad()
def test_codes_and_norms_of_whole_blocks(kv_heads: int) -> None:
    """With 4 key-value heads of 4, o_proj is scaled through v_proj; with 2 it cannot be.

    Not every code can agree: where clipping cuts both ends of a group, its zero point lies midway
    between two codes, and the last bit of the weights decides. Stored scales are float16.
    """
    bits, size = 4, 16
    model, tokens = uneven_model(kv_heads), tiny_tokens(6, 24)
    ours = AWQ(bits=bits, group_size=size).quantize(model, tokens.split(4))
    rtn = RTN(bits=bits, group_size=size).quantize(model, [])
    decoder = model.copy().network.model
    hidden = decoder.embed_tokens(tokens)
    places = torch.arange(tokens.shape[1])[None]
    kwargs = {
        "position_embeddings": decoder.rotary_emb(hidden, places),
        "attention_mask": None,
    }
    for index, block in enumerate(decoder.layers):
        following = block(hidden, **kwargs)
        for name, (rounded, codes) in llm_awq.quantize_block(
            block, hidden, kwargs, bits, size
        ).items():
            whole = f"model.layers.{index}.{name}"
            own = ours.weights[whole]
            assert share(own.codes == codes) > 0.98
            assert share((own.dequantize() - rounded).abs() <= 2**-10 * rounded.abs()) > 0.97
            assert share(rtn.weights[whole].codes == codes) < 0.9
        mine = ours.model.network.model.layers[index]
        for norm in ("input_layernorm", "post_attention_layernorm"):
            scaled = getattr(block, norm).weight
            torch.testing.assert_close(getattr(mine, norm).weight, scaled)
            original = getattr(model.network.model.layers[index], norm).weight
            assert not torch.allclose(scaled, original, rtol=0.1)
        hidden = following
