"""Load and save causal language models, and find the linear layers of any of them."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors import SafetensorError
from torch import nn

from npft import model_checks
from npft.artifacts import LanguageModel, LinearLayer
from npft.errors import NpftError, in_one_line
from npft.processes import ALONE, Processes
from npft.streaming import OverProcesses, Stream, find_blocks
from npft.streaming.resting import Resting

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


Decide = Callable[[nn.Module, torch.device], Literal["resident", "sharded", "streamed"]]


def pick_device(asked: str) -> torch.device:
    """``auto`` is CUDA where there is one, else the CPU.

    Raises:
        NpftError: the device is unknown, or CUDA was asked for and there is none.
    """
    if asked == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if re.fullmatch(r"cpu|cuda(:\d+)?", asked) is None:
        raise NpftError(f"device {asked!r} is unknown: use auto, cpu, cuda or cuda:N")
    device = torch.device(asked)
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise NpftError(
                f"device {asked!r} was asked for, but torch sees no CUDA here: use --device cpu, "
                "or install a CUDA build of torch"
            )
        count = torch.cuda.device_count()
        if device.index is not None and device.index >= count:
            raise NpftError(
                f"device {asked!r} was asked for, but CUDA devices here are 0 to {count - 1}: "
                "give one of those"
            )
    return device


def load(
    source: str,
    *,
    device: str = "auto",
    dtype: str = "float32",
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    decide: Decide | None = None,
    processes: Processes = ALONE,
) -> LanguageModel:
    """Load a causal language model as float.

    Args:
        source: a Hugging Face folder, a ``.gguf`` file, or a hub id.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        dtype: ``float32``, ``bfloat16`` or ``float16``.
        trust_remote_code: let code from the model's repository run.
        allow_pickle: accept weights in pickle files, which can run code when opened.
        decide: asked, before any weight is read, whether to work ``resident``, ``sharded`` or
            ``streamed``, from a network of the same shapes on the meta device; by default it is
            resident.
        processes: those over which a sharded model is spread; all of them load it.

    Raises:
        NpftError: no such model, no or corrupt weights, not a causal LM, already quantized.
    """
    target = pick_device(device)
    if dtype not in DTYPES:
        raise NpftError(f"dtype {dtype!r} is unknown: use {', '.join(DTYPES)}")
    location, gguf_file = model_checks.locate(source, allow_pickle)
    arguments: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    if gguf_file is not None:
        arguments["gguf_file"] = gguf_file
    with _quiet():
        _check_files(source, location, arguments)
        mode = "resident"
        if decide is not None:
            mode = decide(_skeleton(source, location, DTYPES[dtype], arguments), target)
        shards = OverProcesses(target, processes) if mode == "sharded" else None
        place = target if mode == "resident" else torch.device("cpu")
        with nullcontext() if shards is None else _one_by_one(shards):
            network = _load_network(source, location, DTYPES[dtype], allow_pickle, arguments, place)
        tokenizer = _load_tokenizer(source, location, arguments)
        if mode == "resident":
            network = _move(source, network, place)
        model = wrap(network, tokenizer, source)
        if mode != "resident":
            model = streamed(model, target, shards)
        model_checks.check_causal(model)
    return model


def wrap(network: PreTrainedModel, tokenizer: Any, source: str = "") -> LanguageModel:
    """A :class:`LanguageModel` around a network: evaluation mode, no gradients to its weights."""
    network.eval()
    network.requires_grad_(False)
    return LanguageModel(network, tokenizer, find_linear_layers(network), source)


def streamed(
    model: LanguageModel, device: torch.device, resting: Resting | None = None
) -> LanguageModel:
    """The same model, its blocks brought to ``device`` one at a time.

    Meanwhile they are in host memory, or wherever ``resting`` keeps them.
    """
    return replace(model, stream=Stream(model.network, device, resting))


def save(model: LanguageModel, folder: Path) -> None:
    """Write a plain Hugging Face folder that ``AutoModelForCausalLM.from_pretrained`` opens.

    Raises:
        NpftError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _quiet(), _saveable(model.network):
            model.network.save_pretrained(folder)
            if model.tokenizer is not None:
                model.tokenizer.save_pretrained(folder)
    except (OSError, SafetensorError) as error:
        raise NpftError(
            f"model folder {str(folder)!r} cannot be written ({in_one_line(error)}): free some "
            "space, or give another folder"
        ) from error


def save_words(model: LanguageModel, folder: Path) -> None:
    """Write what generates text beside the weights: tokenizer and generation defaults."""
    if model.tokenizer is not None:
        model.tokenizer.save_pretrained(folder)
    with _quiet(), _saveable(model.network):
        if model.network.can_generate():
            model.network.generation_config.save_pretrained(folder)  # type: ignore[union-attr,operator]


def find_linear_layers(network: nn.Module) -> dict[str, LinearLayer]:
    """The quantizable linear layers: those inside the repeated decoder blocks, by structure.

    The blocks are the largest ``ModuleList``. Inside it count ``nn.Linear`` and GPT-2's transposed
    ``Conv1D`` whose weight is used in one place only; embeddings, ``lm_head``, projections outside
    the blocks and tied weights stay out.

    Raises:
        NpftError: the network has no such layers.
    """
    from transformers.pytorch_utils import Conv1D

    prefix, blocks = find_blocks(network)
    everywhere = network.named_modules(remove_duplicate=False)
    owners = Counter(id(p) for _, m in everywhere for p in m._parameters.values())
    layers: dict[str, LinearLayer] = {}
    for name, module in blocks.named_modules(prefix=prefix):
        if not isinstance(module, (nn.Linear, Conv1D)) or owners[id(module.weight)] > 1:
            continue
        path = [network.get_submodule(name.rsplit(".", depth)[0]) for depth in _depths(name)]
        attention = any("attention" in type(ancestor).__name__.lower() for ancestor in path)
        kind = "attention" if attention else "mlp"
        layers[name] = LinearLayer(name, module, kind, isinstance(module, Conv1D))  # type: ignore[arg-type]
    if not layers:
        raise NpftError(f"the model's blocks ({prefix}) have no linear layers that npft can tune")
    return layers


def _depths(name: str) -> range:
    return range(1, name.count(".") + 1)


def _check_files(source: str, location: str, arguments: dict[str, Any]) -> None:
    from transformers import PreTrainedConfig

    if "gguf_file" in arguments:
        return
    try:
        model_checks.check_config(source, PreTrainedConfig.get_config_dict(location)[0])
        if Path(location).is_dir() and not arguments["trust_remote_code"]:
            model_checks.check_size(source, Path(location))
    except NpftError:
        raise
    except Exception as error:
        raise NpftError(model_checks.explain(source, error)) from error


def _skeleton(
    source: str, location: str, dtype: torch.dtype, arguments: dict[str, Any]
) -> PreTrainedModel:
    """A network of the same shapes without any memory."""
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(location, **arguments)
        trust = arguments["trust_remote_code"]
        with torch.device("meta"):
            network: PreTrainedModel = AutoModelForCausalLM.from_config(
                config, dtype=dtype, trust_remote_code=trust
            )
    except Exception as error:
        raise NpftError(model_checks.explain(source, error)) from error
    return network


def _load_network(
    source: str,
    location: str,
    dtype: torch.dtype,
    allow_pickle: bool,
    arguments: dict[str, Any],
    place: torch.device,
) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    if "gguf_file" in arguments:
        arguments = {**arguments, **_dequantized()}
    else:
        arguments = {**arguments, "use_safetensors": None if allow_pickle else True}
        if place.type != "cpu":  # straight there, without a copy in host memory
            arguments["device_map"] = {"": place}
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            location,
            dtype=dtype,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **arguments,
        )
    except torch.OutOfMemoryError as error:
        raise NpftError(_too_large(source, place)) from error
    except Exception as error:
        raise NpftError(model_checks.explain(source, error)) from error
    network, info = loaded
    model_checks.check_weights(source, network, info)
    return _as_ordinary(network)


@contextmanager
def _one_by_one(shards: OverProcesses) -> Iterator[None]:
    """A scope in which a process that reads a model keeps its shards alone of it.

    Else transformers' threads would read ahead, and have weights that wait to be sharded.
    """
    switch = "HF_DEACTIVATE_ASYNC_LOAD"
    before = os.environ.get(switch)
    os.environ[switch] = "1"
    try:
        with shards.reading():
            yield
    finally:
        del os.environ[switch]
        if before is not None:
            os.environ[switch] = before


def _dequantized() -> dict[str, Any]:
    """Ask for float weights where transformers would else keep a GGUF file's blocks."""
    import transformers

    config = getattr(transformers, "GgufConfig", None)
    return {} if config is None else {"quantization_config": config(dequantize=True)}


def _as_ordinary(network: PreTrainedModel) -> PreTrainedModel:
    """Forget that the float weights came out of a GGUF file.

    transformers marks such a model as quantized and then refuses to save it.
    """
    if getattr(network.config, "quantization_config", None) is not None:
        del network.config.quantization_config
    for mark in ("hf_quantizer", "quantization_method", "is_quantized"):
        if hasattr(network, mark):
            delattr(network, mark)
    return network


def _load_tokenizer(source: str, location: str, arguments: dict[str, Any]) -> Any:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(location, **arguments)
    except Exception as error:
        raise NpftError(
            f"model {source!r} has no tokenizer that transformers can load "
            f"({in_one_line(error)}): put the tokenizer's files beside its weights"
        ) from error
    # Where the files are missing, transformers may make a tokenizer that knows no text at all.
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
        raise NpftError(
            f"model {source!r} has no tokenizer: put the tokenizer's files beside its weights"
        )
    return tokenizer


def _move(source: str, network: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    try:
        network.to(device)  # type: ignore[arg-type]
    except torch.OutOfMemoryError as error:
        raise NpftError(_too_large(source, device)) from error
    return network


def _too_large(source: str, device: torch.device) -> str:
    return (
        f"model {source!r} does not fit into the memory of {str(device)!r}: use --memory "
        "streamed, a smaller --dtype, or another --device"
    )


@contextmanager
def _saveable(network: PreTrainedModel) -> Iterator[None]:
    """Set aside generation defaults that transformers loads with a warning but refuses to save."""
    original = getattr(network, "generation_config", None)
    if original is not None:
        try:
            original.validate(strict=True)
        except ValueError:
            special = ("bos_token_id", "eos_token_id", "pad_token_id")
            kept = {key: getattr(original, key) for key in special}
            network.generation_config = type(original)(**kept)
    try:
        yield
    finally:
        if original is not None:
            network.generation_config = original


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' progress bars and warnings: what matters is told as an error."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
