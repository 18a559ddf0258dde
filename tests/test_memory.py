"""Estimates against what torch really holds, and the choice that follows from them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from refusals import refusal
from tiny import CONFIGS, save_tiny, tiny_model, tiny_network, tiny_tokens
from torch import Tensor

from npft import config, memory, models, pipeline
from npft.adapters import attached, trainable
from npft.artifacts import LanguageModel
from npft.memory import Job, Need, Sizes, choose
from npft.plugins import discover
from npft.progress import Silent

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
JOB = Job(
    context=64, samples=8, scored=8, score_batch=2, tune_batch=2, rank=4, gamma=0.01,
    original=False, sensitivities=False,
)  # fmt: skip


def wide(architecture: str, blocks: int) -> LanguageModel:
    """A model whose hidden states are not lost beside its masks and norms."""
    width: dict[str, Any] = {"num_hidden_layers": blocks, "hidden_size": 64}
    width |= {"intermediate_size": 176}
    if architecture == "GPT2":
        width = {"n_layer": blocks, "n_embd": 64}
    if architecture == "OPT":
        width = {"num_hidden_layers": blocks, "hidden_size": 64, "ffn_dim": 256}
        width |= {"word_embed_proj_dim": 64}
    if architecture == "Gemma":
        width |= {"head_dim": 16}
    return tiny_model(architecture, **width)


def kept(model: LanguageModel, tokens: Tensor) -> int:
    """Bytes that a forward pass keeps for the backward pass and for the scorer."""
    parameters = {p.untyped_storage().data_ptr() for p in model.network.parameters()}
    found: dict[int, Tensor] = {}

    def note(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in parameters:
            found[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    def note_input(_module: Any, inputs: tuple[Tensor, ...], _output: Tensor) -> None:
        note(inputs[0])

    for layer in model.layers.values():
        layer.module.register_forward_hook(note_input)
    embedding = model.network.get_input_embeddings()
    embedding.register_forward_hook(lambda *args: args[2].detach().requires_grad_())
    hooks = torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor)
    with torch.enable_grad(), hooks:
        output = model.network.base_model(input_ids=tokens, use_cache=False)
    del output
    return sum(tensor.untyped_storage().nbytes() for tensor in found.values())


@pytest.mark.parametrize("architecture", CONFIGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_a_block_keeps(architecture: str, dtype: torch.dtype) -> None:
    """The estimate is above what three blocks keep beyond one, and not by much."""
    tokens = tiny_tokens(2, 64)
    held = []
    for blocks in (1, 3):
        model = wide(architecture, blocks)
        model.network.to(dtype)
        held.append(kept(model, tokens))
    real = (held[1] - held[0]) / 2 / tokens.numel()
    sizes = Sizes.of(model.network, dtype.itemsize)
    estimate = sizes.saved * sizes.itemsize
    assert estimate / 2.8 < real < 1.05 * estimate


@pytest.mark.parametrize("architecture", CONFIGS)
def test_sizes_are_those_of_the_tensors(architecture: str) -> None:
    model = wide(architecture, 3)
    sizes = Sizes.of(model.network, 4)
    weights = [layer.weight for layer in model.layers.values()]
    assert sizes.weights * 4 == sum(p.nbytes for p in model.network.parameters())
    assert sizes.linear == sum(w.numel() for w in weights)
    assert sizes.linear == 3 * sizes.block_linear
    assert sizes.matrix == max(w.numel() for w in weights)
    with attached(model, list(model.layers), rank=4, alpha=8, dropout=0, seed=0) as (wrapped, _):
        adapter = sum(p.nbytes for p in trainable(wrapped))
    assert memory._adapter(sizes, JOB) == 4 * adapter


def test_streaming_does_not_grow_with_depth() -> None:
    shallow, deep = (Sizes.of(wide("Llama", blocks).network, 4) for blocks in (3, 30))
    scoring = replace(JOB, tune_batch=1, rank=1)
    grown = memory.streamed(deep, scoring).device - memory.streamed(shallow, scoring).device
    assert grown < 0.05 * (memory.resident(deep, JOB).device - memory.resident(shallow, JOB).device)


SIZES = Sizes.of(tiny_network(num_hidden_layers=30), 4)
RESIDENT, STREAMED = memory.resident(SIZES, JOB), memory.streamed(SIZES, JOB)
PLENTY = Need(10 * RESIDENT.device, 10 * STREAMED.host)


def test_recorded_passes_leave_no_memory_to_a_smaller_last_batch() -> None:
    job = replace(JOB, samples=11, tune_batch=4, score_batch=1, recorded=True)
    both = memory.resident(SIZES, replace(job, tune_batch=7, recorded=False))
    assert memory.resident(SIZES, job) == both
    assert memory.resident(SIZES, replace(job, samples=12)).device < both.device
    assert memory.streamed(SIZES, job) == memory.streamed(SIZES, replace(job, recorded=False))


def test_auto_is_resident_where_that_fits() -> None:
    choice = choose("auto", SIZES, JOB, PLENTY, CUDA)
    assert (choice.mode, choice.score_batch) == ("resident", JOB.score_batch)
    assert f"{RESIDENT.device / 1e9:.1f} GB" in choice.told


def test_batches_fill_the_device() -> None:
    """As many windows as there are; half of them as long as that does not fit."""
    job = replace(JOB, score_batch=0, samples=64)
    assert choose("auto", SIZES, job, PLENTY, CPU).score_batch == 4
    roomy = Need(10**12, 10**12)
    assert choose("auto", SIZES, job, roomy, CUDA).score_batch == 64
    long = replace(job, context=2048)
    assert choose("auto", SIZES, long, roomy, CUDA).score_batch == memory.FULL // 2048
    need = memory.resident(SIZES, replace(job, score_batch=16)).device
    tight = Need(int(need / memory.USABLE) + 1, PLENTY.host)
    assert choose("resident", SIZES, job, tight, CUDA).score_batch == 16


def test_auto_streams_where_the_device_is_too_small() -> None:
    between = Need((STREAMED.device + RESIDENT.device) // 2, PLENTY.host)
    assert STREAMED.device < memory.USABLE * between.device < RESIDENT.device
    choice = choose("auto", SIZES, JOB, between, CUDA)
    assert choice.mode == "streamed"
    assert f"{STREAMED.host / 1e9:.1f} GB of the host's" in choice.told


def several(count: int, job: Job = JOB) -> Job:
    return replace(job, processes=count, here=count)


def test_shards_take_their_part_of_the_device() -> None:
    """Beside what streaming needs, and in host memory little but the whole model at the end."""
    blocks = SIZES.block * SIZES.blocks * SIZES.itemsize
    for count in (2, 7):
        need = memory.sharded(SIZES, several(count))
        assert need.device - STREAMED.device == pytest.approx(blocks / count, rel=1e-3)
        assert need.host < STREAMED.host
        assert need.host * count >= SIZES.weights * SIZES.itemsize - count


def test_auto_shards_where_a_model_fits_all_devices_but_no_single_one() -> None:
    need = memory.sharded(SIZES, several(4))
    between = Need(int(need.device / memory.USABLE) + 1, PLENTY.host)
    assert STREAMED.device < need.device < RESIDENT.device
    assert choose("auto", SIZES, several(4), PLENTY, CUDA).mode == "resident"
    choice = choose("auto", SIZES, several(4), between, CUDA)
    assert choice.mode == "sharded"
    assert choice.told.startswith("memory: sharded, about ")
    assert choose("auto", SIZES, several(2), between, CUDA).mode == "streamed"
    assert choose("auto", SIZES, JOB, between, CUDA).mode == "streamed"
    assert memory._useful(several(4), CPU) == ["resident", "sharded"]


def test_what_is_asked_for_is_done() -> None:
    assert choose("streamed", SIZES, JOB, PLENTY, CUDA).mode == "streamed"
    assert choose("streamed", SIZES, JOB, PLENTY, CPU).mode == "streamed"
    assert choose("auto", SIZES, JOB, PLENTY, CPU).mode == "resident"


def test_refusals_say_what_would_fit() -> None:
    between = Need((STREAMED.device + RESIDENT.device) // 2, PLENTY.host)
    large = replace(JOB, score_batch=4096)
    told = refusal(lambda: choose("resident", SIZES, JOB, between, CUDA))
    assert told.endswith("--memory streamed would fit")
    told = refusal(lambda: choose("auto", SIZES, large, between, CUDA))
    assert "--score-batch 1" in told
    told = refusal(lambda: choose("auto", SIZES, JOB, Need(1, 1), CUDA))
    assert "use a smaller model" in told
    told = refusal(lambda: choose("streamed", SIZES, JOB, Need(PLENTY.device, 1), CUDA))
    assert told.endswith("--memory resident would fit")
    four = several(4)
    between = Need(int(memory.sharded(SIZES, four).device / memory.USABLE) + 1, PLENTY.host)
    told = refusal(lambda: choose("resident", SIZES, four, between, CUDA))
    assert told.endswith("--memory sharded would fit")
    told = refusal(lambda: choose("sharded", SIZES, several(2), between, CUDA))
    assert told.endswith("--memory streamed would fit")
    told = refusal(lambda: choose("sharded", SIZES, JOB, PLENTY, CUDA))
    assert "start them with accelerate launch --multi_gpu --num_processes N" in told


class Notes(Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, message: str) -> None:
        self.said.append(message)


@pytest.mark.parametrize("asked", ["auto", "streamed"])
def test_a_run_notes_its_choice_before_it_loads(
    asked: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_tiny(tmp_path / "model")
    values = {"model": str(tmp_path / "model"), "output": "o", "device": "cpu", "memory": asked}
    settings = config.make({**values, "context": 16})
    notes = Notes()
    parts = pipeline.plan(settings, discover())
    model, score_batch = pipeline.load(settings, parts, notes)
    assert score_batch == 4
    assert (model.stream is not None) == (asked == "streamed")
    assert [said.split(",")[0] for said in notes.said] == [
        "memory: streamed" if asked == "streamed" else "memory: resident"
    ]
    monkeypatch.setattr(memory, "free_memory", lambda _: Need(1000, 1000))
    monkeypatch.setattr(models, "_load_network", lambda *_: pytest.fail("weights were read"))
    assert "does not fit" in refusal(lambda: pipeline.load(settings, parts, notes))
