"""Contract checks for plugins, the built-in ones and yours alike.

Each takes a configured instance and raises AssertionError, saying which promise is broken::

    from npft.testing import check_sampler

    def test_contract():
        check_sampler(MySampler(scale=0.5))

They run on random models of a few thousand weights, on the CPU, in a second or less.
"""

from __future__ import annotations

import math
import random
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from npft.artifacts import LanguageModel, QuantizedModel
from npft.contracts import Loss, Objective, Plugin, Quantizer, Sampler, Scorer
from npft.grid import Grid
from npft.seeding import generator

_VOCABULARY = 64
_EPOCHS = 8  # enough for an objective that remembers to come to use what it remembers


def check_scorer(scorer: Scorer) -> None:
    """Check a scorer against :class:`npft.contracts.Scorer`.

    Raises:
        AssertionError: layers are left out or out of order; a sensitivity has the wrong shape or
            dtype, or is negative, NaN or infinite; yielded tensors are kept; two runs differ; the
            model changes, or keeps hooks or gradients; the global random state is touched.
    """
    _check_class(scorer, Scorer)
    for model in small_models():
        batches = list(_tokens().split(2))
        with _left_alone(scorer, *batches), _model_left_alone(scorer, model):
            first = _stream(scorer, model, batches)
        _require(list(first) == list(model.layers), scorer, "must yield every layer once, in order")
        second = _stream(scorer, model, batches)
        same = all(torch.equal(first[name], second[name]) for name in first)
        _require(same, scorer, "gives other scores for the same model and batches")


def _stream(scorer: Scorer, model: LanguageModel, batches: list[Tensor]) -> dict[str, Tensor]:
    """Copies of all scores, checking each while it passes."""
    copies: dict[str, Tensor] = {}
    previous: weakref.ref[Tensor] | None = None
    stream = iter(scorer.score(model, batches))
    while (item := next(stream, None)) is not None:
        name, sensitivity = item
        kept = previous is not None and previous() is not None
        _require(not kept, scorer, "keeps tensors that it has yielded: let each go")
        shape = model.layers[name].weight.shape if name in model.layers else None
        _require(
            sensitivity.shape == shape and sensitivity.dtype == torch.float32,
            scorer,
            f"yields {tuple(sensitivity.shape)} {sensitivity.dtype} for {name}, whose weight is "
            f"{tuple(shape or ())}: give float32 of the weight's shape (out, in)",
        )
        fine = bool((torch.isfinite(sensitivity) & (sensitivity >= 0)).all())
        _require(fine, scorer, f"yields negative, NaN or infinite scores for {name}")
        copies[name] = sensitivity.clone()
        previous = weakref.ref(sensitivity)
        del item, sensitivity
    return copies


def check_sampler(sampler: Sampler) -> None:
    """Check a sampler against :class:`npft.contracts.Sampler`, as tuning uses it: bound first.

    Raises:
        AssertionError: the noise has the wrong shape or dtype, is NaN or infinite, has a mean over
            the matrix that is too far from zero for chance, or differs between two runs with equal
            generators; the inputs change; the global random state is touched.
    """
    _check_class(sampler, Sampler)
    weight = torch.randn(12, 8, generator=generator(0, "weights"))
    everywhere = torch.arange(weight.numel())
    for case in (weight, weight.T, weight.bfloat16(), torch.zeros(12, 8)):
        for positions in (everywhere, everywhere[3::7], everywhere[5:6], everywhere[:0]):
            for grid in (Grid(4), Grid(3, group_size=4), Grid(8)):
                _check_noise(sampler, case, positions, grid)
    large = torch.randn(64, 64, generator=generator(1, "weights"))
    noise = _draws(sampler, large, torch.arange(large.numel()), Grid(4), count=8).double()
    limit = 6 * float(noise.square().mean().sqrt()) / math.sqrt(large.numel())
    mean = float(noise.mean())
    _require(
        abs(mean) <= limit, sampler, f"gives noise of mean {mean:.3g}, not within {limit:.3g} of 0"
    )


def _check_noise(sampler: Sampler, weight: Tensor, positions: Tensor, grid: Grid) -> None:
    with _left_alone(sampler, weight, positions):
        noise = _draws(sampler, weight, positions, grid)
    where = f"for {len(positions)} positions of a {weight.dtype} weight {tuple(weight.shape)}"
    _require(
        noise.shape[1:] == positions.shape and noise.dtype == weight.dtype,
        sampler,
        f"gives {tuple(noise.shape[1:])} {noise.dtype} {where}: one value per position, in the "
        "weight's dtype",
    )
    _require(bool(torch.isfinite(noise).all()), sampler, f"gives NaN or infinite noise {where}")
    again = _draws(sampler, weight, positions, grid)
    _require(torch.equal(noise, again), sampler, "draws from another source than its generator")


def _draws(
    sampler: Sampler, weight: Tensor, positions: Tensor, grid: Grid, count: int = 2
) -> Tensor:
    """Successive noises for one matrix, ``(count, k)``."""
    scores = torch.rand(weight.shape, generator=generator(0, "scores"))
    bound = sampler.bind(weight, scores if sampler.needs_sensitivity else None)
    source = generator(0, "noise")
    return torch.stack([bound.sample(weight, positions, grid, source) for _ in range(count)])


def check_objective(objective: Objective) -> None:
    """Check an objective against :class:`npft.contracts.Objective`.

    Raises:
        AssertionError: the loss is no finite scalar, has no gradient with respect to the student,
            or differs between two calls; two tunings that begin alike go on differently, or do so
            from the same state; the inputs change; the global random state is touched.
    """
    _check_class(objective, Objective)
    for model in small_models():
        tokens = _tokens()
        hidden = objective.needs_hidden_states
        with torch.no_grad():
            student = model.network(tokens, output_hidden_states=hidden)
            original = model.network(tokens, output_hidden_states=hidden)
        if not objective.needs_original:
            original = None
        noise = generator(0, "logits")
        leaves = [student.logits, *(student.hidden_states or ())]
        for leaf in leaves:
            leaf.add_(0.1 * torch.randn(leaf.shape, generator=noise)).requires_grad_()
        watched = [tokens, *leaves, *([original.logits] if original is not None else [])]
        with _left_alone(objective, *watched):
            loss = objective.loss(student, tokens, original)
        _require(
            isinstance(loss, Tensor) and loss.dim() == 0 and bool(torch.isfinite(loss)),
            objective,
            f"must return a finite scalar tensor, not {loss}",
        )
        _require(loss.requires_grad, objective, "has no gradient: was it detached?")
        gradients = torch.autograd.grad(loss, leaves, retain_graph=True, allow_unused=True)
        found = [g for g in gradients if g is not None]
        fine = all(bool(torch.isfinite(g).all()) for g in found) and any(g.any() for g in found)
        _require(fine, objective, "has a zero, NaN or infinite gradient for the student's output")
        again = objective.loss(student, tokens, original)
        _require(torch.equal(loss, again), objective, "gives another loss for the same outputs")
        with _left_alone(objective, *watched):
            _check_course(objective, student, tokens, original)


def _check_course(objective: Objective, student: Any, tokens: Tensor, original: Any) -> None:
    """Require that a tuning can be repeated, and taken up again after any epoch."""

    def epoch(begun: Loss, number: int) -> Tensor:
        if number > 0:
            begun.new_epoch(number)
        return begun.loss(student, tokens, original)

    one, two = objective.begin(0), objective.begin(0)
    for number in range(_EPOCHS):
        loss, same = epoch(one, number), epoch(two, number)
        fine = bool(torch.isfinite(loss)) and loss.requires_grad
        _require(fine, objective, f"gives {loss} in epoch {number}: not finite, or no gradient")
        _require(torch.equal(loss, same), objective, f"cannot be repeated: epoch {number} differs")
        kept = {name: value.clone() for name, value in two.state_dict().items()}
        two = objective.begin(0)
        two.load_state_dict(kept)


def check_quantizer(quantizer: Quantizer) -> None:
    """Check a quantizer against :class:`npft.contracts.Quantizer`.

    Raises:
        AssertionError: layers are left out; codes are not uint8 of the weight's shape below
            ``2**bits``; the runnable model has other weights than the packed ones stand for, or
            gives NaN; average bits are below the bits; two runs differ; the given model changes;
            the global random state is touched.
    """
    _check_class(quantizer, Quantizer)
    group = quantizer.group_size_or_zero
    for model in small_models(width=math.lcm(32, group) if group else 32):
        random_scores = generator(0, "scores")
        scores = {
            name: torch.rand(layer.weight.shape, generator=random_scores)
            for name, layer in model.layers.items()
        }
        given = scores if quantizer.needs_sensitivity else None
        batches = list(_tokens().split(2))
        with (
            _left_alone(quantizer, *batches, *scores.values()),
            _model_left_alone(quantizer, model),
        ):
            first = quantizer.quantize(model, batches, given)
        _check_quantized(quantizer, model, first)
        second = quantizer.quantize(model, batches, given)
        same = all(
            torch.equal(weight.codes, second.weights[name].codes)
            for name, weight in first.weights.items()
        )
        _require(same, quantizer, "gives other codes for the same model")


def _check_quantized(quantizer: Quantizer, model: LanguageModel, result: QuantizedModel) -> None:
    _require(
        isinstance(result, QuantizedModel) and set(result.weights) == set(model.layers),
        quantizer,
        "must return a QuantizedModel with a packed weight for every layer",
    )
    for name, packed in result.weights.items():
        runnable = result.model.layers[name].weight
        _require(
            packed.codes.dtype == torch.uint8
            and packed.codes.shape == runnable.shape
            and int(packed.codes.max()) < 2**quantizer.bits,
            quantizer,
            f"gives {name} codes that are not uint8 (out, in) below 2**bits",
        )
        _require(
            torch.equal(packed.dequantize().to(runnable.dtype), runnable),
            quantizer,
            f"leaves other weights in the runnable model than the codes of {name} stand for",
        )
        shared = runnable.data_ptr() == model.layers[name].weight.data_ptr()
        _require(not shared, quantizer, f"shares the weight of {name} with the given model")
    _require(
        result.average_bits >= quantizer.bits == result.bits,
        quantizer,
        f"reports {result.average_bits} average bits and {result.bits} bits for {quantizer.bits}",
    )
    with torch.no_grad():
        logits = result.model.network(_tokens()).logits
    _require(bool(torch.isfinite(logits).all()), quantizer, "makes a model that predicts NaN")


def small_models(width: int = 32) -> Iterator[LanguageModel]:
    """Random two-block models in float32, with ``nn.Linear`` (Llama) and ``Conv1D`` (GPT-2)."""
    from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

    from npft.models import wrap

    llama = LlamaConfig(
        vocab_size=_VOCABULARY,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
    )
    gpt2 = GPT2Config(
        vocab_size=_VOCABULARY,
        n_embd=width,
        n_layer=2,
        n_head=2,
        n_positions=32,
        bos_token_id=0,
        eos_token_id=0,
    )
    for config in (llama, gpt2):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        yield wrap(network, None)


def _tokens() -> Tensor:
    return torch.randint(_VOCABULARY, (4, 16), generator=generator(0, "tokens"))


def _check_class(plugin: Plugin, contract: type[Plugin]) -> None:
    _require(isinstance(plugin, contract), plugin, f"is no {contract.__name__}")
    named = isinstance(getattr(plugin, "name", None), str) and bool(plugin.name)
    _require(named, plugin, "has no name: give its class a `name: ClassVar[str]`")
    copy = type(plugin)(**plugin.model_dump())
    _require(copy == plugin, plugin, "cannot be made again from its own options")


@contextmanager
def _left_alone(plugin: Plugin, *inputs: Tensor) -> Iterator[None]:
    """Require that the body changes neither its inputs nor any global random state."""
    before = [tensor.detach().clone() for tensor in inputs]
    states = _random_states()
    yield
    same = all(torch.equal(old, new) for old, new in zip(before, inputs, strict=True))
    _require(same, plugin, "changes a tensor that it was given")
    _require(
        states == _random_states(), plugin, "touches a global random state: use a torch.Generator"
    )


@contextmanager
def _model_left_alone(plugin: Plugin, model: LanguageModel) -> Iterator[None]:
    """Require that the body leaves weights, modes, gradients and hooks of the model as they are."""
    before = {name: value.clone() for name, value in model.network.state_dict().items()}
    flags = _flags(model)
    yield
    after = model.network.state_dict()
    same = before.keys() == after.keys() and all(torch.equal(before[n], after[n]) for n in before)
    _require(same, plugin, "changes the weights of the model that it was given")
    _require(flags == _flags(model), plugin, "leaves hooks, gradients or another mode on the model")


def _flags(model: LanguageModel) -> list[tuple[Any, ...]]:
    modules = [
        (name, module.training, len(module._forward_hooks), len(module._forward_pre_hooks))
        for name, module in model.network.named_modules()
    ]
    parameters = [
        (name, parameter.requires_grad, parameter.grad is None)
        for name, parameter in model.network.named_parameters()
    ]
    return [*modules, *parameters]


def _random_states() -> tuple[Any, ...]:
    numpy_state = np.random.get_state(legacy=False)
    return (torch.get_rng_state().tolist(), random.getstate(), repr(numpy_state))


def _require(condition: bool, plugin: Plugin, promise: str) -> None:
    if not condition:
        raise AssertionError(f"{type(plugin).__name__} {promise}")
