"""Sampled noise on base weights: put on for one forward and backward pass, taken off exactly."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from npft.adapters import base_of
from npft.artifacts import LanguageModel, LinearLayer, Outliers
from npft.contracts import Draw, Remembers, Sampler
from npft.grid import Grid


class Noise:
    """Puts sampled noise on the outliers of the base weights, and takes it off again."""

    def __init__(
        self,
        sampler: Sampler,
        outliers: Mapping[str, Outliers],
        grids: Sequence[Grid],
        random: torch.Generator,
        *,
        sensitivities: Mapping[str, Tensor] | None = None,
        layers: str = "all",
        keep: bool = False,
    ) -> None:
        """Prepare noise.

        Args:
            sampler: draws the noise.
            outliers: positions that get it, per layer.
            grids: target grids, of which each application draws one.
            random: the only source of randomness. What is chosen on the host is drawn on the
                CPU, where the host need not wait for the device.
            sensitivities: per layer, for samplers that need them.
            layers: ``attention`` or ``mlp`` leaves the other kind alone; ``all`` shakes both.
            keep: keep what was drawn until :meth:`new_epoch`.
        """
        self.outliers = outliers
        self._sampler = sampler
        self._grids = grids
        self._random = random
        self._choices = _on_cpu(random)
        self._sensitivities = sensitivities
        self._layers = layers
        self._keep = keep
        self._kept: dict[str, Tensor] = {}
        self._bound: dict[tuple[Sampler, str], Draw] = {}
        self._remembered: dict[str, dict[str, Tensor]] = {}

    def state(self) -> dict[str, Tensor] | None:
        """What later noise depends on, between two epochs; None if a draw cannot tell it.

        Those are the generators, and what each bound draw remembers. The noise kept for an epoch is
        over, and the outliers are selected anew from what the caller has.
        """
        remembered = dict(self._remembered)
        for (sampler, name), draw in self._bound.items():
            if isinstance(draw, Remembers):
                remembered[_key(sampler, name)] = draw.state()
            elif not isinstance(draw, Sampler):
                return None
        found = {"random": self._random.get_state(), "choices": self._choices.get_state()}
        for key, tensors in remembered.items():
            found |= {f"{key}/{part}": values for part, values in tensors.items()}
        return found

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on where :meth:`state` was taken; draws get theirs when they are bound again."""
        self._random.set_state(state["random"])
        self._choices.set_state(state["choices"])
        for key, values in state.items():
            if key not in ("random", "choices"):
                draw, _, part = key.rpartition("/")
                self._remembered.setdefault(draw, {})[part] = values

    def new_epoch(self) -> None:
        """Forget noise that was kept for an epoch."""
        self._kept.clear()

    @contextmanager
    def applied(self, model: LanguageModel) -> Iterator[None]:
        """Within this scope the base weights carry noise; after it they are as before."""
        grid = self._draw_grid()
        sampler = self._sampler.each_step(self._choices)
        apply = self._on_resident if model.stream is None else self._on_streamed
        with apply(model, sampler, grid):
            yield

    @contextmanager
    def _on_resident(self, model: LanguageModel, sampler: Sampler, grid: Grid) -> Iterator[None]:
        saved = _Saved()
        try:
            with torch.no_grad():
                for name, layer in self._shaken(model):
                    chosen, base = self.outliers[name], base_of(layer)
                    noise = self._kept.get(name)
                    if noise is None:
                        noise = self._sample(name, layer, sampler, grid)
                    if self._keep:
                        self._kept[name] = noise
                    saved.add(chosen, base, noise)
            yield
        finally:
            with torch.no_grad():
                saved.restore()

    @contextmanager
    def _on_streamed(self, model: LanguageModel, sampler: Sampler, grid: Grid) -> Iterator[None]:
        """Put noise on each block that comes to the device, whose weights there are a copy.

        A block comes again for the backward pass, with the same noise, kept in host memory.
        """
        stream, drawn = model.stream, self._kept if self._keep else {}
        assert stream is not None
        by_block: dict[int, list[tuple[str, LinearLayer]]] = {}
        for name, layer in self._shaken(model):
            by_block.setdefault(stream.index_of(name), []).append((name, layer))

        def shake(block: int) -> None:
            for name, layer in by_block.get(block, []):
                base = base_of(layer)
                if name not in drawn:
                    drawn[name] = self._sample(name, layer, sampler, grid).to(model.home)
                chosen = self.outliers[name].on(base.device)
                chosen.put_(base, chosen.take(base) + drawn[name].to(base.device))

        with stream.editing(shake):
            yield

    def _shaken(self, model: LanguageModel) -> Iterator[tuple[str, LinearLayer]]:
        """The layers that get noise."""
        for name, layer in model.layers.items():
            if len(self.outliers.get(name, ())) and self._layers in ("all", layer.kind):
                yield name, layer

    def _sample(self, name: str, layer: LinearLayer, sampler: Sampler, grid: Grid) -> Tensor:
        weight = layer.weight
        positions = self.outliers[name].indices(weight.device)
        return self._draw(sampler, name, weight).sample(weight, positions, grid, self._random)

    def _draw(self, sampler: Sampler, name: str, weight: Tensor) -> Draw:
        key = (sampler, name)
        if key not in self._bound:
            known = None
            if self._sensitivities is not None:
                known = self._sensitivities[name].to(weight.device)
            drawn = self._bound[key] = sampler.bind(weight, known)
            remembered = self._remembered.pop(_key(sampler, name), None)
            if remembered is not None and isinstance(drawn, Remembers):
                drawn.load_state({k: v.to(weight.device) for k, v in remembered.items()})
        return self._bound[key]

    def _draw_grid(self) -> Grid:
        if len(self._grids) == 1:
            return self._grids[0]
        index = torch.randint(len(self._grids), (), generator=self._choices)
        return self._grids[int(index)]


class _Saved:
    """Weights under noise, and what they were, in few launches of kernels."""

    def __init__(self) -> None:
        self._parts: list[tuple[Outliers, Tensor, Tensor]] = []
        self._wholes: list[tuple[Tensor, Tensor]] = []

    def add(self, chosen: Outliers, base: Tensor, noise: Tensor) -> None:
        """Put ``noise (k,)`` on the chosen positions of ``base (out, in)``."""
        if chosen.positions is None:
            self._wholes.append((base, base.clone()))
            base.add_(noise.view(chosen.shape))
            return
        values = chosen.take(base)
        self._parts.append((chosen, base, values))
        chosen.put_(base, values + noise)

    def restore(self) -> None:
        """Put all of them back, bit for bit."""
        for chosen, base, values in self._parts:
            chosen.put_(base, values)
        if self._wholes:
            matrices, were = zip(*self._wholes, strict=True)
            torch._foreach_copy_(matrices, were)


def _on_cpu(random: torch.Generator) -> torch.Generator:
    """The generator itself, or one of the same seed on the CPU."""
    if random.device.type == "cpu":
        return random
    return torch.Generator().manual_seed(random.initial_seed())


def _key(sampler: Sampler, layer: str) -> str:
    """A name for what a sampler remembers of a layer, the same in every process."""
    return f"{sampler.name}{sampler.model_dump_json()}/{layer}"
