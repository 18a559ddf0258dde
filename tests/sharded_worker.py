"""What one of several processes finds with sharded models; ``test_sharded.py`` compares it.

    torchrun --nproc_per_node 3 tests/sharded_worker.py FOLDER

Each process writes ``FOLDER/RANK.pt``. Models are those of :mod:`tiny`, saved in the folder.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from recording import everywhere, some
from safetensors.torch import save_file
from tiny import tiny_tokens
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook as on_registration

from npft import fingerprints, models, score_files
from npft.adapters import attached
from npft.artifacts import LanguageModel, Outliers, StepLoss
from npft.contracts import Objective, Sampler, Scorer
from npft.errors import NpftError
from npft.objectives import KL, CrossEntropy
from npft.processes import Processes, join
from npft.samplers import Residual, StepUniform
from npft.scorers import Fisher, Magnitude
from npft.streaming.shards import own
from npft.tuning import Tuning, tune

Way = Callable[[LanguageModel], tuple[dict[str, Outliers], Sampler, Objective]]

WAYS: dict[str, Way] = {
    "default": lambda model: (everywhere(model), Residual(quantizers=("rtn", "kmeans")), KL()),
    "step-uniform": lambda model: (some(model, 0.01), StepUniform(), CrossEntropy()),
}
"""What gets noise, from where it comes, and the loss."""

SETTINGS = Tuning(epochs=1, batch_size=2, rank=2, alpha=4, lr=1e-3, terms="both", norms=True)


def load(folder: Path, processes: Processes) -> LanguageModel:
    """A model of which this process reads its shards."""
    return models.load(str(folder), device="cpu", decide=lambda *_: "sharded", processes=processes)


@contextmanager
def most_at_once(found: dict[str, Any]) -> Iterator[None]:
    """Notes how many whole matrices there were at once while a model was read."""
    seen: list[weakref.ref[nn.Parameter]] = []
    found["whole"] = 0

    def note(_module: nn.Module, _name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and parameter.dim() > 1 and not parameter.is_meta:
            if own(parameter) is parameter:
                seen.append(weakref.ref(parameter))
            found["whole"] = max(found["whole"], sum(ref() is not None for ref in seen))

    handle = on_registration(note)
    yield
    handle.remove()
    assert seen


def logits(model: LanguageModel) -> Tensor:
    """Predictions on a few tokens."""
    with torch.no_grad():
        found: Tensor = model.network(input_ids=tiny_tokens(), use_cache=False).logits
    return found


def scored(model: LanguageModel, scorer: Scorer, processes: Processes) -> dict[str, Tensor]:
    """Scores of two windows, which leave the third process without one."""
    windows = tiny_tokens(windows=2)
    mine = processes.share(windows) if scorer.sums_over_windows else windows
    found = {}
    for name, values in scorer.score(model, iter(mine.split(1) if len(mine) else ())):
        if scorer.sums_over_windows:
            processes.add([values])
        found[name] = values
    return found


def tuned(model: LanguageModel, way: str, processes: Processes) -> list[StepLoss]:
    """The losses of three windows in batches of two: the last step has one window."""
    chosen, sampler, objective = WAYS[way](model)
    known = dict(Fisher().score(model, iter(tiny_tokens(windows=2).split(1))))
    return tune(
        model, tiny_tokens(windows=3), chosen, sampler, objective, SETTINGS,
        sensitivities=known, processes=processes,
    ).losses  # fmt: skip


def resting(model: LanguageModel) -> Iterator[tuple[str, Tensor]]:
    """What this process has of the blocks' parameters between calls."""
    assert model.stream is not None
    for index, block in enumerate(model.stream.blocks):
        for name, parameter in block.named_parameters():
            yield f"{index}.{name}", own(parameter)


def refused(model: LanguageModel) -> list[str]:
    """What cannot be done with shards."""
    told = []
    layer = next(iter(model.layers.values()))
    for attempt in (lambda: layer.weight, model.copy):
        try:
            attempt()
        except NpftError as error:
            told.append(str(error))
    return told


def findings(folder: Path, processes: Processes) -> dict[str, Any]:
    """Everything that is compared, of one model."""
    found: dict[str, Any] = {}
    with most_at_once(found):
        model = load(folder, processes)
    found["fingerprint"] = fingerprints.of_model(model)
    found["resting"] = {n: values.untyped_storage().nbytes() for n, values in resting(model)}
    found["logits"] = logits(model)
    found["fisher"] = scored(model, Fisher(), processes)
    found["magnitude"] = scored(model, Magnitude(), processes)
    file = folder / f"{processes.rank}.safetensors"
    save_file({name: values.contiguous() for name, values in found["magnitude"].items()}, file)
    found["read"] = score_files.sensitivities(file, model.layers, "cpu")
    found["refused"] = refused(model)
    found["tuned"] = {way: tuned(model, way, processes) for way in WAYS}
    with attached(model, list(model.layers), rank=2, alpha=4, dropout=0, seed=0) as (_, adapted):
        found["adapted"] = scored(adapted, Fisher(), processes)
    assert model.stream is not None
    found["loads"] = model.stream.loads
    model.stream.settle()
    found["settled"] = fingerprints.of_model(model) if processes.main else None
    found["left"] = sum(p.nbytes for _, p in resting(model) if not p.is_meta)
    if processes.main:
        found["copied"] = logits(model.copy())
    return found


def main(folder: Path) -> None:
    """Look at every model in the folder."""
    with join() as processes:
        found = {
            path.name: findings(path, processes)
            for path in sorted(folder.iterdir())
            if path.is_dir()
        }
        torch.save(found, folder / f"{processes.rank}.pt")
        processes.disband()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
