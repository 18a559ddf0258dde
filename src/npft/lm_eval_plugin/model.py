"""One model of a run folder for lm-evaluation-harness; importing this needs the harness."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from lm_eval.api.registry import register_model

from npft import adapters, checkpoints, config, models
from npft.artifacts import LanguageModel
from npft.config import RunConfig
from npft.errors import NpftError
from npft.evaluation.harness_model import HarnessModel
from npft.folder import CONFIG

MODELS = ("original", "control", "tuned")
UNTRUSTED = MappingProxyType({"trust_remote_code": False, "allow_pickle": False})


@register_model("npft")
class RunModel(HarnessModel):
    """``lm_eval --model npft --model_args path=RUN,quant=kmeans-4``.

    Args:
        path: a run folder, or a packed checkpoint.
        quant: a checkpoint of the run folder, such as ``kmeans-4``; else the float model.
        model: ``tuned``, ``control`` or ``original``.
        device: ``cpu``, ``cuda`` or ``cuda:N``; the harness's command says ``cuda:0`` where the
            user says nothing, so that CUDA stands for the CPU where there is none, as in ``hf``.
        dtype: ``float32``, ``bfloat16`` or ``float16``; the run's own by default.
        trust_remote_code: let the model's own code run.
        allow_pickle: open pickle weights, which can run code.
        options: further ones of the harness's ``hf`` model, such as ``batch_size``.

    Raises:
        NpftError: the folder has no such model.
    """

    def __init__(
        self,
        path: str,
        quant: str | None = None,
        model: str = "tuned",
        device: str = "auto",
        dtype: str | None = None,
        trust_remote_code: bool = False,
        allow_pickle: bool = False,
        **options: Any,
    ) -> None:
        if device.startswith("cuda") and not torch.cuda.is_available():
            device = "cpu"
        trusted = {"trust_remote_code": trust_remote_code, "allow_pickle": allow_pickle}
        super().__init__(open_model(Path(path), quant, model, device, dtype, trusted), **options)


def open_model(
    path: Path,
    quant: str | None,
    which: str,
    device: str,
    dtype: str | None,
    trusted: Mapping[str, bool] = UNTRUSTED,
) -> LanguageModel:
    """A model by its place in a run folder; see :class:`RunModel`.

    What the run's own configuration says of ``trusted`` does not count: whoever wrote it may not
    be who runs it.
    """
    if (path / checkpoints.MANIFEST).is_file():
        return checkpoints.load(path, device=device, dtype=dtype or "float32").model
    if which not in MODELS:
        raise NpftError(f"model={which!r} is unknown: use {', '.join(MODELS)}")
    if not (path / CONFIG).is_file():
        raise NpftError(f"path={str(path)!r} is no run folder: it has no {CONFIG}")
    settings = config.make({**config.read(path / CONFIG), "device": device, **trusted})
    if dtype is not None:
        settings = settings.model_copy(update={"dtype": dtype})
    if quant is not None:
        place = _checkpoint(path, quant, which)
        return checkpoints.load(place, device=device, dtype=settings.dtype).model
    if which == "original":
        return _load(settings.model, settings)
    if which == "tuned":
        return _load(str(_part(path, "merged")), settings)
    adapter = adapters.load_adapter(_part(path, "control"))
    return adapters.merge(_load(settings.model, settings), adapter)


def _checkpoint(path: Path, quant: str, which: str) -> Path:
    place = path / "quantized" if which == "tuned" else path / "quantized" / which
    if (place / quant / checkpoints.MANIFEST).is_file():
        return place / quant
    there = sorted(found.parent.name for found in place.glob(f"*/{checkpoints.MANIFEST}"))
    raise NpftError(
        f"{str(path)!r} has no checkpoint {quant!r} of the {which} model: it has "
        f"{', '.join(there) or 'none'}; make one with npft quantize {path} --of {which}"
    )


def _part(path: Path, name: str) -> Path:
    if not (path / name).is_dir():
        raise NpftError(f"{str(path)!r} has no {name}/ yet: run npft tune first")
    return path / name


def _load(source: str, settings: RunConfig) -> LanguageModel:
    return models.load(
        source,
        device=settings.device,
        dtype=settings.dtype,
        trust_remote_code=settings.trust_remote_code,
        allow_pickle=settings.allow_pickle,
    )
