"""What GPTQModel's solver makes of each layer, as it makes it."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from gptqmodel.quantization.config import Fallback, FallbackStrategy
from gptqmodel.quantization.gptq import GPTQ
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

ALWAYS = Fallback(strategy=FallbackStrategy.RTN, threshold=math.inf)
"""Round to nearest, however many samples there are."""


class Unsolved(Exception):
    """GPTQ has no answer for a layer; the text says why."""


class Watch:
    """While it is entered, every layer that GPTQModel quantizes is written to a file and told.

    GPTQModel goes on by itself where its solver fails: with rounding to nearest where a Hessian
    cannot be factored or nothing reached the layer, and with a rougher rounding where the loss is
    NaN. All of these become the one rounding to nearest on the layer's own grid, and are named.
    """

    def __init__(
        self,
        layers: list[str],
        settings: dict[str, Any],
        folder: Path,
        say: Callable[[dict[str, Any]], None],
    ) -> None:
        self._numbers = {name: index for index, name in enumerate(layers)}
        self._settings = settings
        self._folder = folder
        self._say = say
        self.done: set[str] = set()

    def __enter__(self) -> Watch:
        self._original = original = GPTQ.quantize
        watch = self

        def quantize(solver: GPTQ, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
            if solver.qcfg.mock_quantization:
                raise Unsolved("its loss is NaN")
            return watch._solve(solver, lambda: original(solver, *args, **kwargs))

        GPTQ.quantize = quantize
        return self

    def __exit__(self, *_: object) -> None:
        GPTQ.quantize = self._original

    def _solve(self, solver: Any, attempt: Callable[[], tuple[Any, ...]]) -> tuple[Any, ...]:
        name = solver._named_module.full_name
        dead = _dead_inputs(solver)
        asked = self._settings["damp_percent"]
        try:
            result = attempt()
            _require_solution(result)
            made = self._encode(solver.module, result)
            if (damping := result[6]) > asked:
                self._note(
                    f"{name} has a Hessian that is not positive definite: its damping was raised "
                    f"from {asked:g} to {damping:g}"
                )
            if dead:
                self._note(
                    f"{name} has {dead} inputs that calibration leaves at 0: GPTQ zeroed them"
                )
        except Unsolved as why:
            solver.qcfg.mock_quantization = False
            solver.fallback = ALWAYS
            result = attempt()
            made = self._encode(solver.module, result)
            self._note(f"{name} could not be solved by GPTQ, as {why}: it is rounded to nearest")
        index = self._numbers[name]
        save_file(made, self._folder / f"{index}.safetensors")
        self.done.add(name)
        self._say({"layer": index})
        return result

    def _note(self, text: str) -> None:
        self._say({"note": text})

    def _encode(self, module: nn.Module, result: tuple[Any, ...]) -> dict[str, Tensor]:
        """Codes, scale, zero and group index of weights that lie on their grid.

        Raises:
            Unsolved: they do not.
        """
        quantized, scale, zero, g_idx = result[:4]
        weight = (quantized.T if isinstance(module, Conv1D) else quantized).float()
        where = g_idx.long()
        scale, zero = scale.float().to(weight.device), zero.float().to(weight.device)
        codes = torch.round(weight / scale[:, where]) + zero[:, where]
        on_grid = (codes - zero[:, where]) * scale[:, where]
        step = scale[:, where]
        if not bool(((on_grid - weight).abs() <= 0.25 * step).all()):
            raise Unsolved("its weights come out off their grid")
        if codes.min() < 0 or codes.max() > 2 ** self._settings["bits"] - 1:
            raise Unsolved("its codes come out of range")
        made = {
            "codes": codes.to(torch.uint8),
            "scale": scale.half(),
            "zero": zero.to(torch.uint8),
            "g_idx": g_idx.to(torch.int32),
        }
        if not bool(torch.isfinite(made["scale"]).all()):
            raise Unsolved("its scales do not fit into 16 bits")
        return {key: value.cpu().contiguous() for key, value in made.items()}

    def _tell_damping(self, name: str, used: float) -> None:
        asked = self._settings["damp_percent"]
        if used > asked:
            self._say(
                {
                    "note": f"{name} has a Hessian that is not positive definite: its damping was "
                    f"raised from {asked:g} to {used:g}"
                }
            )


def _require_solution(result: tuple[Any, ...]) -> None:
    """Where GPTQModel has rounded to nearest, its loss is a text that says so.

    Raises:
        Unsolved: it has.
    """
    loss = result[5]
    if isinstance(loss, str):
        few = loss.startswith("fallback(")
        raise Unsolved(
            "too few calibration tokens reach it"
            if few
            else "its Hessian cannot be factored, however damped"
        )


def _dead_inputs(solver: Any) -> int:
    """Inputs that are 0 on all of the calibration, whose weights GPTQ sets to 0."""
    hessian = solver.finalize_hessian(getattr(solver.module, "target_device", None))
    return int((hessian.diagonal() == 0).sum())
