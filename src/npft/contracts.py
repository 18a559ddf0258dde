"""What a plugin implements: Scorer, Sampler, Objective, Quantizer.

A plugin is a class, and the class is its own configuration: a frozen pydantic model whose fields
are its options (with type, default, bounds and description) and whose ``name`` is the word that
the command line uses. Shapes are torch's: a linear weight is ``(out, in)``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

from pydantic import BaseModel, ConfigDict, Field

from npft.errors import NpftError, Unavailable
from npft.grid import Grid
from npft.progress import Progress, Silent

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from npft.artifacts import LanguageModel, PackedWeight, QuantizedModel


class Plugin(BaseModel):
    """The common base: options are fields, frozen once validated.

    Unknown options are refused, and so are numbers that are infinite or NaN.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: ClassVar[str]


class Scorer(Plugin, ABC):
    """How sensitive the loss is to each weight."""

    sums_over_windows: ClassVar[bool] = False
    """Whether the scores of some windows and those of others add up to those of all.

    Then several processes score a share each, which may be no window at all; else each scores all.
    """

    @abstractmethod
    def score(
        self, model: LanguageModel, batches: Iterable[Tensor]
    ) -> Iterator[tuple[str, Tensor]]:
        """Yield ``(layer name, sensitivity)`` for each of ``model.layers``, in their order.

        Only where the model has a ``stream`` may the blocks come in another order. There weights
        are read in the scope of ``model.reading(name)``, as they may be sharded.

        Args:
            model: the model to score; its weights must not be changed.
            batches: token ids, each ``(batch, context)``, on the model's device.

        Yields:
            A non-negative, finite float32 tensor ``(out, in)`` per layer, on the weight's device
            and with memory of its own. The caller drops each before it asks for the next, so that
            no two need be in memory at once.
        """


class Draw(Protocol):
    """What tuning asks for noise: a sampler, or what it bound to one matrix."""

    def sample(
        self, weight: Tensor, positions: Tensor, grid: Grid, generator: torch.Generator
    ) -> Tensor:
        """See :meth:`Sampler.sample`."""
        ...


@runtime_checkable
class Remembers(Protocol):
    """A :class:`Draw` that can tell what it remembers, so that a tuning can be continued.

    After an interruption the matrix is bound anew, and ``load_state`` makes the new object one
    that draws exactly what the old one would have drawn.
    """

    def state(self) -> dict[str, Tensor]:
        """Everything that later draws depend on and that binding does not give.

        By names without a slash.
        """
        ...

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Remember what :meth:`state` told, instead of what binding gave."""
        ...


class Sampler(Plugin, ABC):
    """Noise of the kind that quantization makes.

    Options must be hashable, a tuple in place of a list: tuning keeps what is bound by sampler.
    """

    @property
    def needs_sensitivity(self) -> bool:
        """Whether :meth:`bind` wants the sensitivities of the matrix; may depend on options."""
        return False

    def each_step(self, generator: torch.Generator) -> Sampler:
        """The sampler of the step that begins: one and the same for all matrices.

        The default is the sampler itself. One that mixes several kinds of noise returns the kind
        it drew for this step.

        Args:
            generator: the only source of randomness, on the CPU.
        """
        return self

    def bind(self, weight: Tensor, sensitivity: Tensor | None) -> Draw:
        """What draws noise for one matrix throughout a tuning.

        The default is the sampler itself. One that must remember something of each matrix, such
        as a codebook, returns a new object here and keeps itself frozen. That object should be one
        that :class:`Remembers`; while another is in use, no epoch of the tuning is kept, so that
        after an interruption the tuning begins anew.

        Args:
            weight: ``(out, in)``, the effective weight at the start.
            sensitivity: ``(out, in)`` if ``needs_sensitivity``, else None.
        """
        return self

    @abstractmethod
    def sample(
        self, weight: Tensor, positions: Tensor, grid: Grid, generator: torch.Generator
    ) -> Tensor:
        """Draw noise for one matrix.

        Args:
            weight: ``(out, in)``, the effective weight: base plus adapter. Not to be changed.
            positions: ``(k,)`` int64, sorted flat positions into ``weight`` that get noise.
            grid: the grid to which the weights will be quantized.
            generator: the only source of randomness, on the weight's device.

        Returns:
            ``(k,)`` in the weight's units and dtype, on its device, with zero mean.
        """


class Loss(Protocol):
    """What tuning asks for losses: an objective, or what it began for one tuning."""

    def new_epoch(self, epoch: int) -> None:
        """See :meth:`Objective.new_epoch`."""
        ...

    def loss(self, student: Any, tokens: Tensor, original: Any | None) -> Tensor:
        """See :meth:`Objective.loss`."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """See :meth:`Objective.state_dict`."""
        ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """See :meth:`Objective.load_state_dict`."""
        ...


class Objective(Plugin, ABC):
    """The loss that tuning keeps low while the weights are shaken."""

    needs_original: ClassVar[bool] = False
    """Whether :meth:`loss` wants the original model's output on the same batch."""

    needs_hidden_states: ClassVar[bool] = False
    """Whether the outputs must carry ``hidden_states``."""

    averages_over_windows: ClassVar[bool] = False
    """Whether the loss of a batch is the mean of its windows' own losses.

    Then several processes take a share of each batch; else each takes all of it.
    """

    replayable: ClassVar[bool] = False
    """Whether :meth:`loss` never waits for the device and is the same at every call.

    That is: what it computes from the same tensors depends neither on values that the host reads
    from them nor on earlier calls, and :meth:`begin` gives one that does so too. Then tuning on a
    CUDA device may record its kernels once and replay them.
    """

    def begin(self, seed: int) -> Loss:
        """What computes the losses of one tuning, which starts with epoch 0.

        The default is the objective itself. One that remembers something from step to step
        returns a new object here and keeps itself frozen.

        Args:
            seed: the only source of randomness, as for :func:`npft.seeding.generator`.
        """
        return self

    def new_epoch(self, epoch: int) -> None:
        """Another pass over the same windows begins: number ``epoch``, from 1."""

    def state_dict(self) -> dict[str, Tensor]:
        """All that the losses to come depend on, besides their arguments and the options."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what :meth:`state_dict` gave, in an object that has just begun."""

    @abstractmethod
    def loss(self, student: Any, tokens: Tensor, original: Any | None) -> Tensor:
        """A scalar to minimise, in nats per token where that makes sense.

        Args:
            student: the model output under noise (or without, for the clean term), with
                ``logits (batch, context, vocabulary)``.
            tokens: ``(batch, context)`` token ids.
            original: the same kind of output from the original model (adapter off, no noise,
                no gradient) if ``needs_original``, else ``None``.
        """


class Layers(Protocol):
    """Quantized layers that are kept one by one."""

    def load(self, name: str) -> PackedWeight | None:
        """A layer that was kept, if it was."""
        ...

    def save(self, name: str, weight: PackedWeight) -> None:
        """Keep a layer, whole or not at all."""
        ...


class Quantizer(Plugin, ABC):
    """Turns a float model into a quantized one.

    A per-matrix quantizer implements :meth:`quantize_weight`; one that needs the whole model
    overrides :meth:`quantize` instead.
    """

    needs_sensitivity: ClassVar[bool] = False
    """Whether :meth:`quantize` wants the sensitivities of the model it is given."""

    keeps_layers: ClassVar[bool] = False
    """Whether a run keeps each layer when it is done, for the case that it is interrupted.

    For per-matrix quantizers that take long."""

    bits: int = Field(4, ge=2, le=8, description="bits per weight")

    @property
    def group_size_or_zero(self) -> int:
        """Inputs per group of the grid, 0 where each output channel is one group."""
        return int(getattr(self, "group_size", 0))

    @property
    def checkpoint_format(self) -> str:
        """How checkpoints are written, one of :data:`npft.checkpoints.FORMATS`.

        The default is the option ``format``, where there is one, else npft's own.
        """
        return str(getattr(self, "format", "npft"))

    @property
    def variant(self) -> str:
        """What tells this setting from others of the same bits and group size, if anything."""
        return ""

    @property
    def label(self) -> str:
        """The setting's name in tables and of its checkpoint's folder, such as ``rtn-4-g64``."""
        from npft.artifacts import label

        return label(self.name, self.bits, self.group_size_or_zero, self.variant)

    def check(self, model: LanguageModel) -> None:
        """Refuse, before any work, what this configuration cannot do.

        An override raises :class:`npft.errors.Unavailable` for everything that another quantizer
        or option can do: a width, a kind of layer, a library or environment that is missing.

        Raises:
            Unavailable: the group size does not divide some layers' inputs (they are named).
        """
        size = self.group_size_or_zero
        bad = [n for n, layer in model.layers.items() if size and layer.in_features % size]
        if bad:
            widths = sorted({model.layers[name].in_features for name in bad})
            raise Unavailable(
                f"{self.name} with group_size={size} cannot quantize {len(bad)} layers whose "
                f"{', '.join(map(str, widths))} inputs it does not divide ({_abridged(bad)}): "
                "choose a divisor, or 0 for one group per output channel"
            )

    def quantize_weight(self, weight: Tensor, sensitivity: Tensor | None) -> PackedWeight:
        """Quantize one matrix ``(out, in)``; ``sensitivity`` has the same shape, or is None."""
        raise NotImplementedError(
            f"quantizer {self.name!r} implements neither quantize_weight nor quantize"
        )

    def follow(
        self, weight: Tensor, sensitivity: Tensor | None
    ) -> Callable[[Tensor], PackedWeight]:
        """A function that quantizes this matrix again and again while tuning moves it a little.

        The default quantizes from scratch each time; a quantizer with a costly search may reuse
        what it finds on ``weight``. While the matrix has not moved, the function gives what
        :meth:`quantize_weight` gives, up to rounding.
        """
        return lambda moved: self.quantize_weight(moved, sensitivity)

    def quantize(
        self,
        model: LanguageModel,
        calibration: Iterable[Tensor],
        sensitivities: Mapping[str, Tensor] | None = None,
        progress: Progress | None = None,
    ) -> QuantizedModel:
        """Quantize every linear layer of a copy of ``model``.

        Args:
            model: the float model, left as it is.
            calibration: token ids, each ``(batch, context)``; unused by per-matrix quantizers.
            sensitivities: layer name to ``(out, in)``, if ``needs_sensitivity``.
            progress: where to show the layers done.
        """
        return self.quantize_layers(model, sensitivities, progress)

    def quantize_layers(
        self,
        model: LanguageModel,
        sensitivities: Mapping[str, Tensor] | None,
        progress: Progress | None = None,
        done: Layers | None = None,
    ) -> QuantizedModel:
        """What :meth:`quantize` does by default: each layer by :meth:`quantize_weight`.

        Args:
            model: as there.
            sensitivities: as there.
            progress: as there.
            done: layers that need not be quantized again, and where to keep those that are.

        Raises:
            NpftError: a layer cannot be quantized; it is named.
        """
        from npft.artifacts import QuantizedModel

        self.check(model)
        runnable = model.copy()
        weights: dict[str, PackedWeight] = {}
        shown = (progress or Silent()).track(
            runnable.layers.items(), f"quantize {self.label}", len(runnable.layers)
        )
        for name, layer in shown:
            packed = None if done is None else done.load(name)
            if packed is None:
                weight, sensitivity = layer.weight.to(model.device).float(), None
                if sensitivities is not None:
                    sensitivity = sensitivities[name].to(model.device)
                try:
                    packed = self.quantize_weight(weight, sensitivity).to(model.home)
                except NpftError as error:
                    raise type(error)(f"layer {name}: {error}") from error
                if done is not None:
                    done.save(name, packed)
            packed.check()
            weights[name] = packed
            layer.weight.copy_(packed.dequantize())
        return QuantizedModel(
            runnable,
            weights,
            self.name,
            self.bits,
            self.group_size_or_zero,
            format=self.checkpoint_format,
            variant=self.variant,
        )


KINDS: dict[str, type[Plugin]] = {
    "scorer": Scorer,
    "sampler": Sampler,
    "objective": Objective,
    "quantizer": Quantizer,
}
"""The four kinds of plugin and the contract that each fulfils."""


def _abridged(names: list[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
