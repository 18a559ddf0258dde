"""Groups and what absorbs their scales, in every family: as the architecture says, and exact."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import CONFIGS, tiny_model, tiny_tokens

from npft.artifacts import LanguageModel
from npft_awq.blocks import Block, Stream, split
from npft_awq.structure import Group, find_groups

ATTENTION = "self_attn.q_proj self_attn.k_proj self_attn.v_proj"
NEOX_LIKE = {
    "attention.query_key_value": "input_layernorm",
    "attention.dense": None,
    "mlp.dense_h_to_4h": "post_attention_layernorm",
    "mlp.dense_4h_to_h": None,
}


def llama_like(out: str | None, offset: bool = False) -> dict[str, str | None]:
    plus = " + 1" if offset else ""
    return {
        ATTENTION: f"input_layernorm{plus}",
        "self_attn.o_proj": out,
        "mlp.gate_proj mlp.up_proj": f"post_attention_layernorm{plus}",
        "mlp.down_proj": "mlp.up_proj",
    }


LAYOUTS: dict[str, tuple[str, dict[str, Any], dict[str, str | None]]] = {
    "Llama": ("Llama", {"num_key_value_heads": 4}, llama_like("self_attn.v_proj")),
    "Llama, grouped heads": ("Llama", {}, llama_like(None)),
    "Mistral": ("Mistral", {}, llama_like(None)),
    "Qwen2": ("Qwen2", {"num_key_value_heads": 4}, llama_like("self_attn.v_proj")),
    "Gemma": ("Gemma", {"num_key_value_heads": 4}, llama_like("self_attn.v_proj", offset=True)),
    "Phi, whose MLP is beside the attention": (
        "Phi",
        {"num_key_value_heads": 4},
        {
            f"{ATTENTION} mlp.fc1": "input_layernorm",
            "self_attn.dense": "self_attn.v_proj",
            "mlp.fc2": None,
        },
    ),
    "OPT, whose ReLU passes scales": (
        "OPT",
        {},
        {
            ATTENTION: "self_attn_layer_norm",
            "self_attn.out_proj": "self_attn.v_proj",
            "fc1": "final_layer_norm",
            "fc2": "fc1",
        },
    ),
    "OPT with GELU": (
        "OPT",
        {"activation_function": "gelu"},
        {
            ATTENTION: "self_attn_layer_norm",
            "self_attn.out_proj": "self_attn.v_proj",
            "fc1": "final_layer_norm",
            "fc2": None,
        },
    ),
    "OPT with norms that the residual reads too": (
        "OPT",
        {"do_layer_norm_before": False},
        {ATTENTION: None, "self_attn.out_proj": "self_attn.v_proj", "fc1": None, "fc2": "fc1"},
    ),
    "GPTNeoX": ("GPTNeoX", {}, NEOX_LIKE),
    "GPTNeoX in sequence": ("GPTNeoX", {"use_parallel_residual": False}, NEOX_LIKE),
    "GPT2, whose fused matrix has the values last": (
        "GPT2",
        {},
        {
            "attn.c_attn": "ln_1",
            "attn.c_proj": "attn.c_attn",
            "mlp.c_fc": "ln_2",
            "mlp.c_proj": None,
        },
    ),
}


def found(model: LanguageModel) -> list[tuple[Block, list[Group]]]:
    blocks = split(model)
    stream = Stream(model, blocks, [tiny_tokens(1, 12)])
    groups = []
    for block in blocks:
        groups.append((block, find_groups(block, stream.calls(block)[0])))
        stream.advance(block)
    return groups


def spelled(group: Group) -> str | None:
    if group.absorber is None:
        return None
    return group.absorber.name + (" + 1" if group.absorber.offset else "")


def test_all_families_are_here() -> None:
    assert set(CONFIGS) <= {architecture for architecture, _, _ in LAYOUTS.values()}


@pytest.mark.parametrize("layout", LAYOUTS)
@torch.no_grad()
def test_groups_and_absorbers_are_those_of_the_architecture(layout: str) -> None:
    architecture, changes, expected = LAYOUTS[layout]
    blocks = found(tiny_model(architecture, **changes))
    assert len(blocks) == 2
    for block, groups in blocks:
        readers = [layer for group in groups for layer in group.layers]
        assert sorted(readers) == sorted(block.layers)
        assert {frozenset(g.layers): spelled(g) for g in groups} == {
            frozenset(names.split()): absorber for names, absorber in expected.items()
        }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS)
@torch.no_grad()
def test_scaling_changes_weights_and_no_prediction(layout: str, dtype: torch.dtype) -> None:
    architecture, changes, _ = LAYOUTS[layout]
    model = tiny_model(architecture, **changes)
    random = torch.Generator().manual_seed(0)
    for parameter in model.network.parameters():
        if parameter.dim() == 1:  # biases and norms, which are 0 and 1 in a fresh model
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=random))
    model.network.to(dtype)
    tokens = tiny_tokens()
    before = model.network(tokens).logits.float()
    moved = 0
    for block, groups in found(model):
        for group in groups:
            if group.absorber is None:
                continue
            weight = block.layers[group.layers[0]].weight
            old = weight.clone()
            scales = torch.exp(torch.randn(weight.shape[1], generator=random))
            group.absorber.divide(block, scales)
            group.multiply(block, scales)
            moved += int(not torch.allclose(old, weight, rtol=0.5))
    assert moved >= 4
    after = model.network(tokens).logits.float()
    tolerance = 2e-6 if dtype == torch.float32 else 0.05
    assert float((after - before).norm() / before.norm()) < tolerance


@torch.no_grad()
def test_layers_without_effect_are_not_scaled() -> None:
    """With no output of the attention, nothing shows what absorbs the scales of its inputs."""
    model = tiny_model("Llama", num_key_value_heads=4)
    model.network.model.layers[1].self_attn.o_proj.weight.zero_()
    (_, first), (_, second) = found(model)
    names = ["input_layernorm", "self_attn.v_proj", "post_attention_layernorm", "mlp.up_proj"]
    assert [spelled(group) for group in first] == names
    assert [spelled(group) for group in second] == [None, None, *names[2:]]


@torch.no_grad()
def test_finding_leaves_the_block_as_it_is() -> None:
    model = tiny_model("Gemma")
    before = {name: value.clone() for name, value in model.network.state_dict().items()}
    found(model)
    after = model.network.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
