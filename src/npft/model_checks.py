"""Refuse a model that cannot be worked on, in one sentence, as early as it can be told."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from torch import nn

from npft import gguf_header
from npft.artifacts import LanguageModel
from npft.errors import NpftError, abridged, in_one_line
from npft.streaming.shards import own

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

_REPEATED = re.compile(r"^n(um)?_.*(layer|block|expert)")
"""Settings that say how often something is built."""

_SMALL = 1 << 24
"""Elements that a network may have beside its weights, such as tables of positions."""


def locate(source: str, allow_pickle: bool = False) -> tuple[str, str | None]:
    """Where transformers will find a model: a folder or hub id, and the GGUF file in that folder.

    Raises:
        NpftError: ``source`` is a path, and what is there cannot be loaded as a float model.
    """
    if not source.strip():
        raise NpftError("no model was named: give a Hugging Face folder, a .gguf file or a hub id")
    try:
        path = Path(source).expanduser()
        there = path.exists()
    except (OSError, RuntimeError) as error:
        raise NpftError(
            f"model {source[:80]!r} cannot be looked up as a path ({in_one_line(error)}): check it"
        ) from error
    if path.suffix == ".gguf":
        check_gguf(path)
        return str(path.parent), path.name
    if there or source.startswith((".", "/", "~")):
        check_folder(path, allow_pickle)
        return str(path), None
    return source, None


def check_gguf(file: Path) -> None:
    """Refuse a missing or foreign file before transformers spends time on it."""
    if not file.is_file():
        raise NpftError(f"model {str(file)!r} is not there: give the path of a GGUF file")
    try:
        with file.open("rb") as stream:
            magic = stream.read(4)
    except OSError as error:
        raise NpftError(f"model {str(file)!r} cannot be read: {error.strerror}") from error
    if magic != b"GGUF":
        raise NpftError(
            f"model {str(file)!r} is not a GGUF file, since it does not start with 'GGUF': "
            "get it again, or check the path"
        )
    try:
        header = gguf_header.read(file)
    except (gguf_header.Malformed, OSError) as error:
        raise NpftError(
            f"model {str(file)!r} is a truncated or damaged GGUF file ({in_one_line(error)}): get "
            "it again"
        ) from error
    _check_gguf_size(str(file), header)


def check_folder(folder: Path, allow_pickle: bool = False) -> None:
    """Refuse a folder that is not a float Hugging Face model with safe weights."""
    if not folder.exists():
        raise NpftError(
            f"model {str(folder)!r} is not there: give a Hugging Face folder, a .gguf file or a "
            "hub id"
        )
    if not folder.is_dir():
        raise NpftError(
            f"model {str(folder)!r} is neither a folder nor a .gguf file: give the folder that "
            "its config.json is in"
        )
    check_config(str(folder), _read_config(folder))
    for index in folder.glob("*.index.json"):
        _check_shards(index)
    if any(folder.glob("*.safetensors")):
        return
    if not any(folder.glob("*.bin")):
        raise NpftError(
            f"model folder {str(folder)!r} has no weights: put its *.safetensors there, or get "
            "the model again"
        )
    if not allow_pickle:
        raise NpftError(_only_pickle(f"model folder {str(folder)!r}"))


def check_config(source: str, config: dict[str, Any]) -> None:
    """Refuse the configuration of a model that is not float."""
    if config.get("quantization_config"):
        raise NpftError(
            f"model {source!r} is already quantized: npft works on the float model, so give the "
            "one that it was made from"
        )


def check_size(source: str, folder: Path) -> None:
    """Refuse a configuration of more weights than the files have, before memory is taken."""
    from transformers import AutoConfig

    files = list(folder.glob("*.safetensors"))
    if files:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        check_weights_fit(source, config, files)


def check_weights_fit(
    source: str, config: PreTrainedConfig, files: list[Path], per_byte: int = 1
) -> None:
    """Refuse a configuration of more weights than ``files`` can hold, ``per_byte`` in each byte.

    The network is built without memory, and only once its layers are known to be few enough.
    """
    from transformers import AutoModelForCausalLM

    tensors = sum(map(_tensors, files))
    for name, value in _flat(config.to_dict()):
        if _REPEATED.search(name) and value > tensors:
            raise NpftError(
                f"model {source!r} has {abridged(name)}={abridged(str(value))}, and its files hold "
                f"{tensors} tensors: get both from one place"
            )
    with torch.device("meta"):
        network = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    needed = sum(tensor.numel() for tensor in (*network.parameters(), *network.buffers()))
    most = per_byte * sum(file.stat().st_size for file in files)
    _check_weights_needed(source, needed, most)


def _check_gguf_size(source: str, header: gguf_header.Header) -> None:
    """The same, by the metadata alone: reading a whole vocabulary takes transformers long."""
    known = header.numbers
    blocks = known.get("block_count")
    if blocks != header.blocks:
        raise NpftError(
            f"model {source!r} has {header.blocks} decoder blocks, and block_count={blocks} in its "
            "metadata: get it again"
        )
    heads = max(known.get("head_count", 0), known.get("head_count_kv", 0))
    widths = [known.get(name, 0) for name in ("feed_forward_length", "vocab_size")]
    widths += [heads * known.get(name, 1) for name in ("key_length", "value_length")]
    _check_weights_needed(source, known.get("embedding_length", 0) * max(widths), header.elements)


def _check_weights_needed(source: str, needed: int, most: int) -> None:
    if needed > 2 * most + _SMALL:
        raise NpftError(
            f"model {source!r} has {abridged(str(needed))} weights by its configuration, more than "
            "its files hold: get it again, or both from one place"
        )


def _tensors(file: Path) -> int:
    with safe_open(file, framework="pt") as stored:
        return len(stored.keys())


def _flat(values: dict[str, Any]) -> Iterator[tuple[str, int]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value)
        elif isinstance(value, int):
            yield str(name), value


def _check_shards(index: Path) -> None:
    """Refuse an index whose files are anywhere but beside it."""
    shards = _read_json(index).get("weight_map")
    if not isinstance(shards, dict):
        raise NpftError(f"model file {str(index)!r} has no weight_map: get the model again")
    for name in shards.values():
        if not isinstance(name, str) or Path(name).name != name or name in ("", ".."):
            raise NpftError(
                f"model file {str(index)!r} names the weights {abridged(repr(name))}, which is no "
                "file beside it: get the model from where you trust it"
            )


def explain(source: str, error: Exception) -> str:
    """One sentence for what stopped transformers from loading the weights of ``source``."""
    text, said = str(error), in_one_line(error)
    if "Unrecognized configuration class" in text:
        return (
            f"model {source!r} is not a causal language model that transformers knows: give a "
            "decoder-only one, such as Llama, Qwen or GPT-2"
        )
    if "does not recognize this arch" in text or "`model_type` key" in text:
        return (
            f"model {source!r} has an architecture that this version of transformers does not "
            "know: check model_type in its config.json, or upgrade transformers"
        )
    if "contains custom code" in text:
        return (
            f"model {source!r} needs Python code from its own repository: pass "
            "--trust-remote-code if you have read it and trust it"
        )
    if type(error).__name__ == "SafetensorError":
        return f"model {source!r} has corrupt safetensors ({said}): get it again"
    if source.endswith(".gguf"):
        return f"model {source!r} is a truncated or unsupported GGUF file ({said}): get it again"
    if "Weights only load failed" in text or type(error).__name__ == "UnpicklingError":
        return (
            f"model {source!r} has pickle weights that torch refuses, since they are corrupt or "
            "hold more than tensors: convert them to safetensors where they come from"
        )
    if "does not appear to have a file named model.safetensors" in text:
        return _only_pickle(f"model {source!r}")
    if "couldn't connect" in text or "not a valid model identifier" in text or "Repo id" in text:
        return (
            f"model {source!r} is neither a folder here nor a model that the Hugging Face hub "
            "hands out: check the spelling, the network and your access"
        )
    return f"model {source!r} cannot be loaded, its files may be incomplete or inconsistent: {said}"


def check_weights(source: str, network: PreTrainedModel, info: dict[str, Any]) -> None:
    """Refuse what transformers would fill with random numbers, and numbers that are not finite."""
    missing = sorted(info["missing_keys"])
    if missing:
        raise NpftError(
            f"model {source!r} lacks {len(missing)} of its weights, such as {missing[0]}: get it "
            "again"
        )
    misshapen = sorted(str(key[0]) for key in info["mismatched_keys"])
    if misshapen:
        raise NpftError(
            f"model {source!r} has {len(misshapen)} weights of another shape than its config.json "
            f"says, such as {misshapen[0]}: get both from one place"
        )
    for name, parameter in network.named_parameters():
        if not bool(torch.isfinite(own(parameter)).all()):
            precision = str(parameter.dtype).removeprefix("torch.")
            raise NpftError(
                f"model {source!r} has weights that are not finite numbers in {precision}, such "
                f"as {name}: get it again, or load it as float32"
            )


def check_causal(model: LanguageModel) -> None:
    """Refuse a network whose predictions look ahead, such as BERT with a causal LM's head."""
    same = torch.arange(8, device=model.device) % model.vocabulary
    tokens = torch.stack([torch.cat([same, same[:1]]), torch.cat([same, same[1:2]])])
    try:
        with torch.no_grad():
            one, other = model.network(input_ids=tokens, use_cache=False).logits[:, :-1].float()
    except NpftError:
        raise
    except Exception as error:
        raise NpftError(
            f"model {model.source!r} loads but does not run ({in_one_line(error)}): its files may "
            "be inconsistent"
        ) from error
    tolerance = max(1e-4, 8 * torch.finfo(model.network.dtype).eps)
    if float((one - other).abs().max()) > tolerance * float(one.std()):
        raise NpftError(
            f"model {model.source!r} is not a causal language model, since what it predicts "
            "depends on later tokens: give a decoder-only one"
        )


def check_context(network: nn.Module, source: str, context: int) -> None:
    """Refuse windows of more tokens than the model has positions for."""
    most = getattr(getattr(network, "config", None), "max_position_embeddings", None)
    if isinstance(most, int) and context > most:
        raise NpftError(
            f"a context of {context} tokens is more than the {most} that model {source!r} "
            "takes: give a smaller --context"
        )


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        return _read_json(folder / "config.json")
    except FileNotFoundError as error:
        raise NpftError(
            f"model folder {str(folder)!r} has no config.json: {_instead_of(folder)}"
        ) from error


def _read_json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise NpftError(f"model file {str(file)!r} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise NpftError(
            f"model file {str(file)!r} is not JSON ({in_one_line(error)}): get the model again"
        ) from error
    if not isinstance(found, dict):
        raise NpftError(f"model file {str(file)!r} is not a JSON object: get the model again")
    return found


def _instead_of(folder: Path) -> str:
    """What to give in place of a folder without ``config.json``."""
    for file in sorted(folder.glob("*.gguf")):
        return f"give the GGUF file itself, such as {str(file)!r}"
    if (folder / "merged" / "config.json").is_file():
        return f"it is a run folder, so give its model, {str(folder / 'merged')!r}"
    if (folder / "adapter_config.json").is_file():
        return "it is an adapter, so give the model that the adapter was merged into"
    return "give a folder that a Hugging Face model was saved in"


def _only_pickle(what: str) -> str:
    return (
        f"{what} has only pickle weights (*.bin), which can run code when opened: convert them to "
        "safetensors, or pass --allow-pickle if you trust them"
    )
