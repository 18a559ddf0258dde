"""The published AWQ code restated for one Llama block, to compare with.

After github.com/mit-han-lab/llm-awq, awq/quantize: ``pseudo_quantize_tensor`` of quantizer.py,
``get_act_scale``, ``_search_module_scale`` and ``apply_scale`` of auto_scale.py,
``auto_clip_layer`` and ``auto_clip_block`` of auto_clip.py (MIT License, MIT HAN Lab). Shares no
code with the package.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

SCALED = (
    ("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), "self_attn"),
    ("self_attn.v_proj", ("self_attn.o_proj",), "self_attn.o_proj"),
    ("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj"), "mlp"),
    ("mlp.up_proj", ("mlp.down_proj",), "mlp.down_proj"),
)


def pseudo_quantize(w: Tensor, bits: int, size: int) -> tuple[Tensor, Tensor]:
    """The rounded weights, and their codes."""
    shape = w.shape
    w = w.reshape(-1, size)
    high, low = w.amax(dim=1, keepdim=True), w.amin(dim=1, keepdim=True)
    top = 2**bits - 1
    scales = (high - low).clamp(min=1e-5) / top
    zeros = (-torch.round(low / scales)).clamp_(0, top)
    codes = torch.clamp(torch.round(w / scales) + zeros, 0, top)
    return ((codes - zeros) * scales).reshape(shape), codes.reshape(shape)


def output(module: nn.Module, x: Tensor, kwargs: dict[str, Any]) -> Tensor:
    found = module(x, **kwargs)
    return found[0] if isinstance(found, tuple) else found


def search_scale(
    module: nn.Module,
    linears: list[nn.Linear],
    x: Tensor,
    bits: int,
    size: int,
    kwargs: dict[str, Any],
) -> Tensor:
    original = output(module, x, kwargs)
    x_max = x.abs().view(-1, x.shape[-1]).mean(0)
    best_error, best_scales = float("inf"), None
    state = copy.deepcopy(module.state_dict())
    for ratio in range(20):
        scales = x_max.pow(ratio / 20).clamp(min=1e-4).view(-1)
        scales = scales / (scales.max() * scales.min()).sqrt()
        for fc in linears:
            fc.weight.mul_(scales.view(1, -1))
            fc.weight.data = pseudo_quantize(fc.weight.data, bits, size)[0] / scales.view(1, -1)
        loss = (original - output(module, x, kwargs)).pow(2).mean().item()
        if loss < best_error:
            best_error, best_scales = loss, scales
        module.load_state_dict(state)
    assert best_scales is not None
    return best_scales


def search_clip(w: Tensor, x: Tensor, bits: int, size: int) -> Tensor:
    """The largest magnitudes to keep, ``(out, groups, 1)``, by all tokens of ``x``."""
    x = x.reshape(1, -1, w.shape[1] // size, size)
    w = w.reshape(w.shape[0], 1, -1, size)
    original_max = w.abs().amax(dim=-1, keepdim=True)
    best_max = original_max.clone()
    least = torch.ones_like(original_max) * 1e9
    original = (x * w).sum(dim=-1)
    for step in range(10):
        trial = original_max * (1 - step / 20)
        rounded = pseudo_quantize(torch.clamp(w, -trial, trial), bits, size)[0]
        error = ((x * rounded).sum(dim=-1) - original).pow(2).mean(dim=1).view(least.shape)
        better = error < least
        least[better] = error[better]
        best_max[better] = trial[better]
    return best_max.squeeze(1)


@torch.no_grad()
def quantize_block(
    block: nn.Module, hidden: Tensor, kwargs: dict[str, Any], bits: int, size: int
) -> dict[str, tuple[Tensor, Tensor]]:
    """Rounded weights and codes by layer name, and ``block`` scaled and clipped in place."""
    linears = {n: m for n, m in block.named_modules() if isinstance(m, nn.Linear)}
    inputs: dict[str, Tensor] = {}
    handles = [
        m.register_forward_pre_hook(lambda m, args, n=n: inputs.__setitem__(n, args[0].clone()))
        for n, m in linears.items()
    ]
    block(hidden, **kwargs)
    for handle in handles:
        handle.remove()
    found = []
    for previous, names, inspected in SCALED:
        layers = [linears[n] for n in names]
        if previous in linears and linears[previous].out_features != layers[0].in_features:
            continue
        extra = kwargs if inspected == "self_attn" else {}
        module = block.get_submodule(inspected)
        scales = search_scale(module, layers, inputs[names[0]], bits, size, extra)
        found.append((previous, names, scales))
    for previous, names, scales in found:
        weight = block.get_submodule(previous).weight
        weight.div_(scales if weight.dim() == 1 else scales.view(-1, 1))
        for n in names:
            linears[n].weight.mul_(scales.view(1, -1))
            inputs[n] = inputs[n] / scales
    for n, layer in linears.items():
        if not any(part in n for part in ["q_", "k_", "query", "key", "Wqkv"]):
            limit = search_clip(layer.weight, inputs[n], bits, size)
            grouped = layer.weight.reshape(*limit.shape[:2], -1)
            layer.weight.data = torch.clamp(grouped, -limit, limit).reshape(layer.weight.shape)
    return {n: pseudo_quantize(layer.weight, bits, size) for n, layer in linears.items()}
