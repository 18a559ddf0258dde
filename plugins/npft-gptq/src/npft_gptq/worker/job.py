"""One job: load the model, check that it is the same model here, let GPTQModel quantize it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gptqmodel
import torch
from gptqmodel import GPTQModel, QuantizeConfig
from safetensors.torch import load_file
from solver import Watch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import PreTrainedTokenizerFast

Say = Callable[[dict[str, Any]], None]


class Refusal(Exception):
    """A job that cannot be done, in one sentence for the user."""


def run(folder: Path, say: Say) -> None:
    """Quantize a job folder.

    Raises:
        Refusal: the model is another one here, or GPTQModel leaves out some of its layers.
    """
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    _write_tokenizer(folder / "model")
    settings = job["settings"]
    grouped = settings["group_size"] > 0
    config = QuantizeConfig(
        bits=settings["bits"],
        group_size=settings["group_size"] if grouped else -1,
        sym=settings["sym"],
        desc_act=settings["desc_act"],
        act_group_aware=grouped and not settings["desc_act"],
        damp_percent=settings["damp_percent"],
        device=job["device"],
        offload_to_disk=False,
    )
    model = GPTQModel.load(str(folder / "model"), config, dtype=getattr(torch, job["dtype"]))
    _check_probe(model.model, load_file(folder / "probe.safetensors"), job["tolerance"])
    _check_layers(job["layers"], _layers_that_it_quantizes(model))
    tokens = load_file(folder / "tokens.safetensors")
    batches = [tokens[str(index)] for index in range(len(tokens))]
    windows = [window[None] for batch in batches for window in batch]
    with Watch(job["layers"], settings, folder / "out", say) as watch:
        model.quantize(
            [{"input_ids": w, "attention_mask": torch.ones_like(w)} for w in windows],
            calibration_sort=None,
            batch_size=max(len(batch) for batch in batches),
        )
    _check_layers(job["layers"], watch.done)


def _layers_that_it_quantizes(model: Any) -> set[str]:
    """Full names, by the module tree that GPTQModel has for this architecture."""
    groups = model.simple_layer_modules(model.model.config, model.quantize_config)
    inside = {name for group in groups for name in group}
    blocks = model.extract_layers_node()
    return {
        f"{prefix}.{index}.{name}"
        for prefix in ([blocks] if isinstance(blocks, str) else blocks)
        for index in range(len(model.model.get_submodule(prefix)))
        for name in inside
    }


def _check_layers(asked: list[str], quantized: set[str]) -> None:
    missing = [name for name in asked if name not in quantized]
    if missing:
        raise Refusal(
            f"GPTQModel {gptqmodel.__version__} leaves out {len(missing)} of this model's "
            f"{len(asked)} layers ({missing[0]}): use rtn or kmeans"
        )


def _check_probe(network: Any, probe: dict[str, Tensor], tolerance: float) -> None:
    """Require the logits that the model gave where it came from."""
    with torch.inference_mode():
        here = network(input_ids=probe["tokens"]).logits[0].float()
    there = probe["logits"]
    distance = float((here - there).norm() / there.norm().clamp_min(1e-12))
    if not distance <= tolerance:
        raise Refusal(
            f"GPTQModel {gptqmodel.__version__} reads this model as another one, whose logits are "
            f"{distance:.1%} away from the right ones ({tolerance:.1%} would do): use rtn or kmeans"
        )


def _write_tokenizer(folder: Path) -> None:
    """GPTQModel loads no model without a tokenizer, though it is given token ids."""
    words = Tokenizer(WordLevel({"<pad>": 0}, unk_token="<pad>"))
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>").save_pretrained(folder)
