"""An adapter under noise, and the control's without."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext

import torch
from torch import Tensor

from npft.adapters import Adapter, attached, extract
from npft.artifacts import LanguageModel, Outliers
from npft.compiling import compiled
from npft.contracts import Objective, Sampler
from npft.errors import NpftError
from npft.finite import first_bad_layer
from npft.noise import Noise
from npft.passes import Direct, Passes, balanced, plain
from npft.precision import tensor_cores
from npft.processes import ALONE, Processes
from npft.progress import Progress, Silent
from npft.replay import replayed
from npft.seeding import generator, isolated_rng
from npft.terms import BothTerms, NoNoise, OneTerm, Shaken, Terms
from npft.tuning.settings import Tuning
from npft.tuning.state import Checkpoint
from npft.tuning.training import Training, train

Rescore = Callable[[LanguageModel], Mapping[str, Outliers]]


def tune(
    model: LanguageModel,
    windows: Tensor,
    outliers: Mapping[str, Outliers],
    sampler: Sampler,
    objective: Objective,
    settings: Tuning,
    *,
    seed: int = 0,
    sensitivities: Mapping[str, Tensor] | None = None,
    rescore: Rescore | None = None,
    progress: Progress | None = None,
    checkpoint: Checkpoint | None = None,
    processes: Processes = ALONE,
) -> Adapter:
    r"""Train an adapter under fresh noise at every step (eq. 7).

    .. math:: \min_{U,V} L(W + z_i + UV) + \beta L(W + UV)

    The noise z is added to the base weights only, so that the adapter's gradient is exact, and
    the weights are put back bit for bit after every step.

    Args:
        model: the float model; the same, bit for bit, when this returns.
        windows: ``(n, context)`` calibration token ids.
        outliers: positions that get noise, per layer.
        sensitivities: ``(out, in)`` per layer, if the sampler needs them.
        rescore: called before each epoch after the first if ``settings.rescore``, with the model
            as adapted so far.
        checkpoint: where the state is kept after each epoch; what it has already is not done
            again, and the adapter is the same, bit for bit.
        processes: those that do the same call, and share each step. The adapter is that of one
            process alone, up to rounding, but for dropout.

    Returns:
        The adapter and the losses of each step.

    Raises:
        NotFinite: a loss or a gradient became NaN or infinite, and ``settings.on_bad_step`` is
            ``stop``.
        NpftError: every step was skipped.
    """
    if sampler.needs_sensitivity and sensitivities is None:
        raise NpftError(f"sampler {sampler.name!r} needs the sensitivities of the weights")
    noise = Noise(
        sampler,
        outliers,
        settings.grids(),
        generator(seed, "noise", model.device),
        sensitivities=sensitivities,
        layers=settings.layers,
        keep=settings.draw == "epoch",
    )
    return _trained(
        model, windows, noise, objective, settings, seed, rescore, progress, "tune", checkpoint,
        processes,
    )  # fmt: skip


def control(
    model: LanguageModel,
    windows: Tensor,
    objective: Objective,
    settings: Tuning,
    *,
    seed: int = 0,
    progress: Progress | None = None,
    checkpoint: Checkpoint | None = None,
    processes: Processes = ALONE,
) -> Adapter:
    """The honest baseline: the same adapter, data and steps, with no noise at all."""
    return _trained(
        model, windows, None, objective, settings, seed, None, progress, "control", checkpoint,
        processes,
    )  # fmt: skip


def _trained(
    model: LanguageModel,
    windows: Tensor,
    noise: Noise | None,
    objective: Objective,
    settings: Tuning,
    seed: int,
    rescore: Rescore | None,
    progress: Progress | None,
    label: str,
    checkpoint: Checkpoint | None,
    processes: Processes,
) -> Adapter:
    with (
        attached(
            model,
            settings.adapter_layers(model),
            rank=settings.rank,
            alpha=settings.alpha,
            dropout=settings.dropout,
            norms=settings.norms,
            seed=seed,
        ) as (wrapped, adapted),
        isolated_rng(seed, "dropout" if processes.main else f"dropout {processes.rank}"),
        compiled(adapted) if settings.compile else nullcontext(),
        tensor_cores(),
        torch.enable_grad(),
    ):
        wrapped.eval()
        random = generator(seed, "terms")
        begun = objective.begin(seed)
        scale = balanced if settings.balance and noise is not None else plain
        direct = Direct(wrapped, objective, begun, scale, processes)
        show = progress or Silent()
        per_epoch = math.ceil(len(windows) / settings.batch_size)

        def bad_layer(tokens: Tensor) -> str:
            """Where the numbers first go bad on these tokens, under fresh noise."""
            with nullcontext() if noise is None else noise.applied(adapted):
                return first_bad_layer(adapted, lambda: direct.forward(tokens))

        record = model.stream is None and replayable(model.device, objective, settings, processes)
        with (
            replayed(direct, model.network, show.note) if record else nullcontext(direct) as passes
        ):
            terms = _terms(settings, passes, adapted, noise, random)
            training = Training(
                wrapped, terms, passes.forget, begun, settings, per_epoch, noise, random,
                bad_layer, processes,
            )  # fmt: skip

            def select(noise: Noise) -> None:
                if rescore is not None:
                    passes.release()
                    noise.outliers = rescore(adapted)

            train(
                training,
                windows,
                settings,
                model.device,
                seed,
                rescore=select,
                show=show,
                label=label,
                checkpoint=checkpoint,
            )
        return extract(wrapped, training.losses)


def replayable(
    device: torch.device, objective: Objective, settings: Tuning, processes: Processes
) -> bool:
    """Whether every step of a resident model launches the same kernels of one CUDA device."""
    return (
        settings.replay
        and device.type == "cuda"
        and processes.count == 1
        and settings.dropout == 0
        and objective.replayable
    )


def _terms(
    settings: Tuning,
    passes: Passes,
    adapted: LanguageModel,
    noise: Noise | None,
    random: torch.Generator,
) -> Terms:
    if noise is None:
        return NoNoise(passes, settings.beta)
    shaken = Shaken(passes, adapted, noise)
    if settings.terms == "one":
        return OneTerm(passes, shaken, settings.beta, random)
    return BothTerms(passes, shaken, settings.beta)
