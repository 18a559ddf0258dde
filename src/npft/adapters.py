"""LoRA by peft: attach to a model, take off again, save, merge."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from npft.artifacts import LanguageModel, LinearLayer, StepLoss
from npft.errors import NpftError, abridged, in_one_line
from npft.low_rank import forward_of
from npft.seeding import isolated_rng

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel


@dataclass(frozen=True)
class Adapter:
    """A trained LoRA adapter, apart from any model.

    ``weights`` are peft's own state dict; ``losses`` tell how training went.
    """

    config: LoraConfig
    weights: dict[str, Tensor]
    losses: list[StepLoss] = field(default_factory=list)

    def save(self, folder: Path) -> None:
        """Write the folder that ``PeftModel.from_pretrained`` opens."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        config = copy.copy(self.config)
        config.target_modules = sorted(config.target_modules or ())  # a set has no order
        config.save_pretrained(str(folder))
        save_file(self.weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def load_adapter(folder: Path) -> Adapter:
    """Read a folder that :meth:`Adapter.save` wrote, or peft for a plain LoRA.

    Nothing of the configuration but the plain settings below reaches peft, which would import
    modules and open hub repositories that others name.

    Raises:
        NpftError: there is no adapter, it is broken, or more than a plain LoRA.
    """
    from peft import LoraConfig
    from safetensors.torch import load_file

    try:
        found = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        settings = _Settings.model_validate(found)
        weights = load_file(folder / "adapter_model.safetensors")
    except Exception as error:
        said = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        raise NpftError(
            f"there is no readable adapter in {str(folder)!r} ({in_one_line(Exception(said))}): "
            "run npft tune first"
        ) from error
    config = LoraConfig(task_type="CAUSAL_LM", **settings.model_dump())
    _check_plain(folder, found, config.to_dict())
    for name, values in weights.items():
        if "lora_A" in name and values.shape[:1] != (settings.r,):
            raise NpftError(
                f"the adapter in {str(folder)!r} has rank {settings.r}, but {name} is "
                f"{list(values.shape)}: run npft tune again"
            )
    return Adapter(config, weights)


class _Settings(BaseModel):
    """What of ``adapter_config.json`` a plain LoRA has, with normalisations that were trained."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    r: int = Field(ge=1)
    lora_alpha: float = Field(gt=0)
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: list[str]
    fan_in_fan_out: bool = False
    use_rslora: bool = False
    modules_to_save: list[str] | None = None


_IDLE = {"peft_type", "peft_version", "auto_mapping", "base_model_name_or_path", "revision"}
_IDLE |= {"inference_mode", "init_lora_weights"}
"""Settings that say nothing about a merge."""


def _check_plain(folder: Path, settings: dict[str, Any], plain: dict[str, Any]) -> None:
    """Refuse what would make something else of the weights than ``B A``."""
    for name in sorted(settings.keys() - _Settings.model_fields.keys() - _IDLE):
        if settings[name] and settings[name] != plain.get(name):
            raise NpftError(
                f"the adapter in {str(folder)!r} sets {abridged(repr(name))}, and npft merges "
                "plain LoRA alone: merge it with the software that made it"
            )


@dataclass(frozen=True)
class AdaptedLayer(LinearLayer):
    """A layer under an adapter: ``base`` is the stored weight, ``weight`` the effective one."""

    wrapper: Any = None

    @property
    def base(self) -> Tensor:
        """The base weight ``(out, in)``, a view into the model."""
        return super().weight

    @property
    def weight(self) -> Tensor:
        """Base plus adapter, ``(out, in)``, a new tensor made in one pass over the base."""
        base, scaling = self.base, self.wrapper.scaling["default"]
        b, a = (
            self.wrapper.get_submodule(f"lora_{x}.default").weight.detach().to(base.dtype)
            for x in "BA"
        )
        return torch.addmm(base, b, a, alpha=scaling)


def base_of(layer: LinearLayer) -> Tensor:
    """The stored weight ``(out, in)`` of a layer, under an adapter or not."""
    return layer.base if isinstance(layer, AdaptedLayer) else layer.weight


@contextmanager
def attached(
    model: LanguageModel,
    layers: list[str],
    *,
    rank: int,
    alpha: float,
    dropout: float,
    norms: bool = False,
    seed: int,
) -> Iterator[tuple[PeftModel, LanguageModel]]:
    """Attach a fresh adapter (B = 0, so that nothing changes yet) and take it off on exit.

    With ``norms`` it includes the weights and biases of the normalisations, as copies.

    Yields:
        peft's model, and a view of ``model`` whose layers know their effective weights.
    """
    from peft import LoraConfig

    copied = _normalisations(model) if norms else {}
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]
        lora_dropout=dropout,
        target_modules=layers,
        task_type="CAUSAL_LM",
        fan_in_fan_out=any(model.layers[name].transposed for name in layers),
        modules_to_save=list(copied) or None,
    )
    training = model.network.training
    with isolated_rng(seed, "adapter"):
        wrapped = _wrap(model, config)
    adapted = _adapted(model, set(layers))
    for name in layers:
        layer: Any = adapted.layers[name]
        layer.wrapper.forward = forward_of(layer.wrapper)
    for name in copied:
        wrapper: Any = model.network.get_submodule(name)
        _in_float32(wrapper.modules_to_save["default"])
    for parameter in trainable(wrapped):  # peft puts them where the weights rest
        parameter.data = parameter.data.to(model.device)
    try:
        yield wrapped, adapted
    finally:
        wrapped.unload()  # type: ignore[operator]
        for name, module in copied.items():  # peft leaves its trained copies
            model.network.set_submodule(name, module)
        model.network.train(training)


def _in_float32(norm: nn.Module) -> None:
    """Let a normalisation keep float32 weights in a model of fewer bits, whose steps they lose."""
    forward = norm.float().forward

    def converting(x: Tensor) -> Tensor:
        normalised: Tensor = forward(x.float())
        return normalised.to(x.dtype)

    norm.forward = converting  # type: ignore[method-assign]


def _normalisations(model: LanguageModel) -> dict[str, nn.Module]:
    """The modules of LayerNorm, RMSNorm and the like, found by their classes' names."""
    return {
        name: module
        for name, module in model.network.named_modules()
        if "norm" in type(module).__name__.lower() and module._parameters
    }


class Switches:
    """What is turned on and off at every step, found once: a model has a thousand modules."""

    def __init__(self, wrapped: PeftModel) -> None:
        from peft.tuners.lora import LoraLayer
        from peft.tuners.tuners_utils import BaseTunerLayer
        from peft.utils import ModulesToSaveWrapper

        modules = list(wrapped.modules())
        self._parts = [m for m in modules if isinstance(m, (BaseTunerLayer, ModulesToSaveWrapper))]
        self._dropouts = [
            dropout
            for module in modules
            if isinstance(module, LoraLayer)
            for dropout in module.lora_dropout.values()
            if isinstance(dropout, nn.Dropout)
        ]

    @contextmanager
    def without_adapter(self) -> Iterator[None]:
        """Within this scope the model is the original one; as ``PeftModel.disable_adapter``."""
        for part in self._parts:
            part.enable_adapters(False)
        try:
            yield
        finally:
            for part in self._parts:
                part.enable_adapters(True)

    @contextmanager
    def dropout(self) -> Iterator[None]:
        """Within this scope the adapter's dropout is on; the model's own (OPT, GPT-2) stays off.

        The model's own would be noise that nobody asked for, and keep KL to the original above
        zero.
        """
        for dropout in self._dropouts:
            dropout.train()
        try:
            yield
        finally:
            for dropout in self._dropouts:
                dropout.eval()


def extract(wrapped: PeftModel, losses: list[StepLoss]) -> Adapter:
    """Copy the adapter out of a wrapped model."""
    from peft import get_peft_model_state_dict

    state = get_peft_model_state_dict(wrapped)
    weights = {name: value.detach().cpu().clone().contiguous() for name, value in state.items()}
    config: Any = wrapped.peft_config["default"]
    return Adapter(config, weights, losses)


def merge(model: LanguageModel, adapter: Adapter) -> LanguageModel:
    """A new model with the adapter merged into its weights; ``model`` stays as it is.

    Raises:
        NpftError: the adapter holds NaN or infinite weights, or belongs to another model.
    """
    from peft import set_peft_model_state_dict

    other = set(adapter.config.modules_to_save or ()) - _normalisations(model).keys()
    if other:
        raise NpftError(
            f"the adapter trains {abridged(repr(min(other)))}, and npft merges LoRA and trained "
            "normalisations alone: merge it with the software that made it"
        )
    merged = model.copy()
    try:
        with isolated_rng(0, "merge"):
            wrapped = _wrap(merged, adapter.config)
        result: Any = set_peft_model_state_dict(wrapped, adapter.weights)
    except Exception as error:
        raise NpftError(
            f"the adapter does not belong to this model: {in_one_line(error)}"
        ) from error
    own = ("lora_", "modules_to_save")
    lacking = (key for key in result.missing_keys if any(word in key for word in own))
    strange = [*result.unexpected_keys, *lacking]
    if strange:
        raise NpftError(f"the adapter does not belong to this model: {abridged(strange[0])}")
    try:
        network = wrapped.merge_and_unload(safe_merge=True)  # type: ignore[operator]
    except ValueError as error:
        raise NpftError(f"the adapter cannot be merged: {error}") from error
    return replace(merged, network=network)


def _wrap(model: LanguageModel, config: LoraConfig) -> PeftModel:
    from peft import get_peft_model

    with _float_layers_only():
        return get_peft_model(model.network, config)


@contextmanager
def _float_layers_only() -> Iterator[None]:
    """A scope in which peft does not look for layers of GPTQModel, of which there are none here.

    It looks by importing GPTQModel where that is installed, which prints, sets environment
    variables and patches transformers; and it fails where optimum is not installed too.
    """
    from peft import import_utils

    if "gptqmodel" in sys.modules:
        yield
        return
    sys.modules["gptqmodel"] = None  # type: ignore[assignment]
    import_utils.is_gptqmodel_available.cache_clear()
    try:
        yield
    finally:
        del sys.modules["gptqmodel"]
        import_utils.is_gptqmodel_available.cache_clear()


def _adapted(model: LanguageModel, names: set[str]) -> LanguageModel:
    modules = dict(model.network.named_modules())
    layers = {
        name: AdaptedLayer(name, layer.module, layer.kind, layer.transposed, modules[name])
        if name in names
        else layer
        for name, layer in model.layers.items()
    }
    return replace(model, layers=layers)


def trainable(wrapped: PeftModel) -> list[torch.nn.Parameter]:
    """The adapter's parameters."""
    return [p for p in wrapped.parameters() if p.requires_grad]
