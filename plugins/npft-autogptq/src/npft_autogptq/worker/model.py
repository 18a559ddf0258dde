"""Load the model, and make sure that it is the same model here as where it came from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from refusal import Refusal
from torch import Tensor, nn
from transformers import AutoModelForCausalLM


def load(folder: Path, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """The float model of a folder, in evaluation mode.

    Raises:
        Refusal: this transformers cannot load it, or not all of it.
    """
    try:
        network, info = AutoModelForCausalLM.from_pretrained(
            folder, torch_dtype=dtype, output_loading_info=True, local_files_only=True
        )
    except (ValueError, KeyError, AttributeError, TypeError, RuntimeError, ImportError) as error:
        raise Refusal(
            f"{_here()} cannot load this model ({_in_one_line(error)}): use gptq"
        ) from error
    for kind, what in (
        ("missing_keys", "misses"),
        ("unexpected_keys", "does not know"),
        ("mismatched_keys", "expects another shape of"),
    ):
        if info[kind]:
            raise Refusal(f"{_here()} {what} {info[kind][0]} of this model: use gptq")
    network.config.use_cache = False
    moved: nn.Module = network.to(device).eval()
    return moved


def check_probe(network: nn.Module, probe: dict[str, Tensor], tolerance: float) -> None:
    """Require the logits that the model gave where it came from.

    An old transformers reads what a newer one has written without a word, and may run another
    model: 4.46 does not know ``rope_parameters``, and would take 10000 for every RoPE base.

    Args:
        network: the model as loaded here.
        probe: ``tokens (1, context)``, ``positions (k,)`` and the ``logits (k, vocabulary)`` there.
        tolerance: the greatest relative distance of the logits, each less its mean.

    Raises:
        Refusal: the logits differ by more.
    """
    tokens = probe["tokens"].to(next(network.parameters()).device)
    logits: Any = network(input_ids=tokens).logits
    here = _centred(logits[0, probe["positions"].to(tokens.device)].float().cpu())
    there = _centred(probe["logits"].float())
    distance = float((here - there).norm() / there.norm().clamp_min(1e-12))
    if not distance <= tolerance:
        raise Refusal(
            f"{_here()} reads this model as another one, whose logits are {distance:.1%} away "
            f"from the right ones ({tolerance:.1%} would do): use gptq"
        )


def _centred(logits: Tensor) -> Tensor:
    return logits - logits.mean(dim=-1, keepdim=True)


def _here() -> str:
    return f"transformers {transformers.__version__}, which autogptq needs,"


def _in_one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()).rstrip(".:") or type(error).__name__
    return text if len(text) <= 200 else text[:199].rstrip() + "…"
