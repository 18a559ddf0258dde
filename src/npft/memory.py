"""How much memory a run needs, from shapes alone, and which mode fits.

Resident, all of the model is on the device; streamed, one block at a time (:mod:`npft.streaming`);
sharded, one block at a time and this process's share of the others. docs/scale.md has the formulas
in words.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import nn

from npft.errors import NpftError
from npft.losses import AT_ONCE
from npft.models import find_linear_layers
from npft.processes import NOT_ALONE, Processes
from npft.scorers import squares
from npft.streaming import find_blocks
from npft.streaming.stream import HELD

Mode = Literal["resident", "sharded", "streamed"]

USABLE = 0.9
"""Share of the free memory that an estimate may fill: fragments, kernels' workspaces, surprises."""

FULL = 16_384
"""Tokens that keep a GPU busy with the smallest models."""

FLOAT = 4  # bytes
INDEX = 8


@dataclass(frozen=True)
class Sizes:
    """What a network's memory follows from, in numbers of values unless said otherwise.

    Attributes:
        weights: all parameters.
        blocks: how many decoder blocks.
        block: parameters of the largest block.
        linear: weights of all linear layers.
        block_linear: of the largest block's.
        matrix: of the largest one.
        features: inputs and outputs of the largest block's linear layers, summed.
        saved: values per token that a block keeps for its backward pass.
        width: of the hidden states.
        vocabulary: rows of the logits.
        itemsize: bytes of a value in the model's dtype.
    """

    weights: int
    blocks: int
    block: int
    linear: int
    block_linear: int
    matrix: int
    features: int
    saved: int
    width: int
    vocabulary: int
    itemsize: int

    @classmethod
    def of(cls, network: nn.Module, itemsize: int) -> Sizes:
        """Those of a network, which may be on the meta device."""
        prefix, blocks = find_blocks(network)
        by_block: dict[str, list[tuple[int, int]]] = {}
        gated = False
        for name, layer in find_linear_layers(network).items():
            index = name.removeprefix(f"{prefix}.").partition(".")[0]
            by_block.setdefault(index, []).append(layer.shape)
            gated = gated or "gate" in name.rpartition(".")[2]
        features = max(sum(rows + columns for rows, columns in b) for b in by_block.values())
        sizes = [[rows * columns for rows, columns in b] for b in by_block.values()]
        embedding = network.get_input_embeddings().weight  # type: ignore[operator]
        return cls(
            weights=sum(p.numel() for p in network.parameters()),
            blocks=len(blocks),
            block=max(sum(p.numel() for p in block.parameters()) for block in blocks),
            linear=sum(map(sum, sizes)),
            block_linear=max(map(sum, sizes)),
            matrix=max(map(max, sizes)),
            features=features,
            # Measured: gated MLPs keep 1.0 to 1.2 values per feature, those with GELU up to 1.8.
            saved=features * (12 if gated else 18) // 10,
            width=int(embedding.shape[1]),
            vocabulary=int(embedding.shape[0]),
            itemsize=itemsize,
        )


@dataclass(frozen=True)
class Job:
    """What is done with the model.

    Attributes:
        context: tokens per window.
        samples: windows.
        scored: how many of them one process scores.
        score_batch: windows per batch when scoring, 0 for as many as fill the device.
        tune_batch: windows per step when tuning.
        rank: of the adapter.
        gamma: share of the weights that get noise.
        original: whether the objective needs the original model's predictions.
        sensitivities: whether all sensitivities are kept.
        recorded: whether a resident model's passes are recorded when tuning: that memory is theirs
            alone, and the last batch of an epoch, if it is smaller, needs its own.
        processes: how many do it together.
        here: how many of them are on this machine.
    """

    context: int
    samples: int
    scored: int
    score_batch: int
    tune_batch: int
    rank: int
    gamma: float
    original: bool
    sensitivities: bool
    recorded: bool = False
    processes: int = 1
    here: int = 1


@dataclass(frozen=True)
class Need:
    """Bytes on the device, and in host memory, at the most demanding moment."""

    device: int
    host: int


def resident(sizes: Sizes, job: Job) -> Need:
    """All weights, and the activations of all blocks."""
    weights = sizes.weights * sizes.itemsize
    kept = _sensitivities(sizes, job)
    scoring = FLOAT * sizes.linear + _gradients(sizes, job) + _pass(sizes, job.score_batch, job, 2)
    noise = int(job.gamma * sizes.linear) * (2 * sizes.itemsize)
    tuning = kept + noise + _positions(sizes, job) + _adapter(sizes, job) + _effective(sizes)
    last = job.samples % job.tune_batch if job.recorded else 0
    tuning += _pass(sizes, job.tune_batch + last, job, 2 + job.original)
    return Need(weights + max(scoring, tuning), 0)


def streamed(sizes: Sizes, job: Job) -> Need:
    """Two blocks' weights, and the activations of one; the rest in host memory."""
    kept = _kept(sizes, job)
    return Need(_by_block(sizes, job), sizes.weights * sizes.itemsize + kept)


def sharded(sizes: Sizes, job: Job) -> Need:
    """As streamed, but with the blocks' weights on the devices of all processes.

    In the end the main process has them all in host memory, when the others have ended.
    """
    shard = -(-sizes.block * sizes.blocks // job.processes) * sizes.itemsize
    end = sizes.weights * sizes.itemsize + _sensitivities(sizes, job)
    return Need(_by_block(sizes, job) + shard, max(_kept(sizes, job), end // job.here))


def _by_block(sizes: Sizes, job: Job) -> int:
    """On the device: two blocks and all that is in none, and what one block's work needs."""
    outside = (sizes.weights - sizes.block * sizes.blocks) * sizes.itemsize
    weights = max(outside, 0) + HELD * sizes.block * sizes.itemsize
    one = replace(sizes, blocks=1)
    scoring = FLOAT * sizes.block_linear + _gradients(sizes, job)
    scoring += _pass(one, job.score_batch, job, 2)
    inputs = job.tune_batch * job.context * sizes.width * sizes.itemsize * sizes.blocks
    noise = int(job.gamma * sizes.matrix) * (2 * sizes.itemsize + INDEX)
    tuning = inputs + noise + _adapter(sizes, job) + _effective(sizes)
    tuning += _pass(one, job.tune_batch, job, 2 + job.original)
    return weights + max(scoring, tuning)


def _kept(sizes: Sizes, job: Job) -> int:
    """In host memory, beside weights: sensitivities, and states or noise."""
    states = (sizes.blocks + 1) * job.scored * job.context * sizes.width * sizes.itemsize
    noises = int(job.gamma * sizes.linear) * sizes.itemsize + _positions(sizes, job)
    return _sensitivities(sizes, job) + max(states, noises)


def _pass(sizes: Sizes, batch: int, job: Job, logits: int) -> int:
    """A forward and backward pass: what the blocks keep, and so many copies of the logits."""
    tokens = batch * job.context
    kept = sizes.blocks * (sizes.saved + sizes.width)
    predicted = tokens * sizes.vocabulary
    in_float = 3 * FLOAT * min(predicted, AT_ONCE)
    return sizes.itemsize * (tokens * kept + logits * predicted) + in_float


def _gradients(sizes: Sizes, job: Job) -> int:
    """Sequences' own gradients of one matrix, and their norms."""
    one = sizes.matrix * sizes.itemsize
    most = max(one, min(squares.AT_ONCE, job.score_batch * one))
    return most + FLOAT * sizes.matrix


def _sensitivities(sizes: Sizes, job: Job) -> int:
    return FLOAT * sizes.linear if job.sensitivities else 0


def _positions(sizes: Sizes, job: Job) -> int:
    return 0 if job.gamma == 1 else int(job.gamma * sizes.linear) * INDEX


def _adapter(sizes: Sizes, job: Job) -> int:
    """Weights, gradients and two moments of AdamW in float32."""
    return 4 * FLOAT * job.rank * sizes.features * sizes.blocks


def _effective(sizes: Sizes) -> int:
    """An effective weight, and what a sampler makes of it."""
    return sizes.matrix * (2 * sizes.itemsize + FLOAT)


MODES: dict[Mode, Callable[[Sizes, Job], Need]] = {
    "resident": resident,
    "sharded": sharded,
    "streamed": streamed,
}


@dataclass(frozen=True)
class Choice:
    """How to work: the mode, windows per batch when scoring, and the sentence that tells it."""

    mode: Mode
    score_batch: int
    told: str


def choose(
    asked: Literal["auto", "resident", "sharded", "streamed"],
    sizes: Sizes,
    job: Job,
    free: Need,
    device: torch.device,
) -> Choice:
    """The mode to work in, with the largest batch that fits where none was asked for.

    ``auto`` is resident where that fits, else sharded where that is possible and fits, else
    streamed.

    Raises:
        NpftError: what was asked does not fit, and it says what would; or it needs more processes.
    """
    if asked == "sharded" and job.processes == 1:
        raise NpftError(NOT_ALONE)
    wanted = _useful(job, device) if asked == "auto" else [asked]
    batches = [job.score_batch] if job.score_batch else _batches(job, device)
    for mode in wanted:
        for batch in batches:
            need = _on(device, MODES[mode](sizes, replace(job, score_batch=batch)))
            if _fits(need, free):
                told = f"memory: {mode}, {_told(need, free)}, {batch} windows at once"
                return Choice(mode, batch, told)
    job = replace(job, score_batch=batches[-1])
    need = _on(device, MODES[wanted[-1]](sizes, job))
    raise NpftError(
        f"the run does not fit {wanted[-1]}: it needs {_told(need, free)}; "
        f"{_remedy(wanted, sizes, job, free, device)}"
    )


def _useful(job: Job, device: torch.device) -> list[Mode]:
    """The modes that ``auto`` tries, the quickest first."""
    several = job.processes > 1
    # Streaming saves no memory where the host is the device.
    useful = {"resident": True, "sharded": several, "streamed": device.type != "cpu"}
    return [mode for mode in MODES if useful[mode]]


def _batches(job: Job, device: torch.device) -> list[int]:
    """Windows per batch to try, the most first: what keeps a device busy, and less."""
    most = 4 if device.type == "cpu" else max(1, FULL // job.context)
    most = min(most, job.samples)
    return [most >> halvings for halvings in range(most.bit_length())]


def free_memory(device: torch.device) -> Need:
    """Bytes that are free on a device, and in host memory."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if device.type == "cpu":
        return Need(pages, pages)
    return Need(torch.cuda.mem_get_info(device)[0], pages)


def shared(free: Need, device: torch.device, processes: Processes) -> Need:
    """What each of several processes may fill: they share the host, and have a GPU each."""
    own = free.device // processes.here if device.type == "cpu" else free.device
    return Need(*processes.least([own, free.host // processes.here]))


def _on(device: torch.device, need: Need) -> Need:
    """Where the device is the host, both are one memory."""
    return Need(need.device + need.host, 0) if device.type == "cpu" else need


def _fits(need: Need, free: Need) -> bool:
    return need.device <= USABLE * free.device and need.host <= USABLE * free.host


def _told(need: Need, free: Need) -> str:
    told = f"about {need.device / 1e9:.1f} GB of the device's {free.device / 1e9:.1f} GB"
    if need.host:
        told += f" and {need.host / 1e9:.1f} GB of the host's {free.host / 1e9:.1f} GB"
    return told


def _remedy(wanted: list[Mode], sizes: Sizes, job: Job, free: Need, device: torch.device) -> str:
    """The least change that fits."""
    small = replace(job, score_batch=1, tune_batch=1)
    batches = "--score-batch 1 -o tuning.batch_size=1"
    half = replace(sizes, itemsize=2)
    dtype = "--dtype bfloat16"
    for flags, each, do in (
        ("", sizes, job),
        (batches, sizes, small),
        (dtype, half, job),
        (f"{dtype} {batches}", half, small),
    ):
        for mode in _useful(job, device):
            if not _fits(_on(device, MODES[mode](each, do)), free):
                continue
            other = "" if mode in wanted else f"--memory {mode} "
            return f"{(other + flags).strip()} would fit"
    return "no mode or batch fits: use a smaller model, or a larger device"
