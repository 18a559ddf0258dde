"""Tasks of lm-evaluation-harness, put to models that are already in memory.

https://github.com/EleutherAI/lm-evaluation-harness, the extra ``lm-eval``. The tasks are loaded
once and every model answers them in this process, with the batches, prompts and seeds of
``lm_eval --model hf``, so that the accuracies are the same.
"""

from __future__ import annotations

import json
import logging
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from npft import seeding
from npft.artifacts import LanguageModel, Row
from npft.errors import NpftError
from npft.evaluation.harness_tasks import TaskSettings, load_tasks
from npft.progress import Progress, Silent

SEEDS = {"random": 0, "numpy": 1234, "torch": 1234, "fewshot": 1234}
"""The defaults of ``lm_eval --seed``."""


@dataclass(frozen=True)
class Score:
    """One metric of one task.

    Attributes:
        metric: ``acc``, ``acc_norm``…, with the filter after a comma where the task has several.
        stderr: the standard error, where the harness knows it.
        questions: how many were answered.
    """

    task: str
    metric: str
    value: float
    stderr: float | None
    questions: int


@dataclass(frozen=True)
class Answers:
    """What one model scores, and the harness's own report of it, ready for JSON."""

    scores: list[Score]
    report: dict[str, Any]

    def rows(self, about: Mapping[str, Any]) -> list[Row]:
        """The scores as rows of results, with what ``about`` says of the model."""
        return [
            Row(
                **about,
                dataset=score.task,
                metric=score.metric,
                value=score.value,
                stderr=score.stderr,
                questions=score.questions,
            )
            for score in self.scores
        ]


class Tasks:
    """Tasks with their questions, loaded once for all models.

    Raises:
        NpftError: the harness is not installed, or a task is unknown or cannot be loaded.
    """

    def __init__(self, settings: TaskSettings) -> None:
        if find_spec("lm_eval") is None:
            raise NpftError(
                f"tasks ({', '.join(settings.tasks)}) were asked for, but lm-evaluation-harness is "
                "not installed: pip install 'npft[lm-eval]'"
            )
        self.settings = settings
        with _quietly(), _seeded():
            self._loaded = load_tasks(settings)

    def evaluate(
        self,
        model: LanguageModel,
        progress: Progress | None = None,
        label: str = "tasks",
        model_args: Mapping[str, str] | None = None,
    ) -> Answers:
        """Put every question to ``model``, whose weights are left as they are.

        ``model_args`` goes into the report: how ``lm_eval --model npft`` finds this model.

        Raises:
            NpftError: the model has no usable tokenizer, or a batch does not fit into memory.
        """
        from lm_eval.evaluator import evaluate

        from npft.evaluation.harness_model import HarnessModel

        with _quietly(), _seeded():
            # The examples are drawn from a stream of the task: start it anew for each model.
            for task in self._loaded["tasks"].values():
                task.set_fewshot_seed(seed=SEEDS["fewshot"])
            answering = HarnessModel(model, self.settings.batch_size)
            answering.show(progress or Silent(), label)
            try:
                report = evaluate(
                    answering, self._loaded, limit=self.settings.limit, log_samples=False
                )
            except torch.OutOfMemoryError as error:
                raise NpftError(
                    f"{label} does not fit into the memory of {str(model.device)!r} with "
                    f"{self.settings.batch_size} questions at once: use a smaller --task-batch"
                ) from error
        assert report is not None
        return Answers(_scores(report), self._in_json(model, dict(report), model_args))

    def _in_json(
        self, model: LanguageModel, report: dict[str, Any], model_args: Mapping[str, str] | None
    ) -> dict[str, Any]:
        from lm_eval.utils import handle_non_serializable

        report["config"] = {
            "model": "npft",
            "model_args": dict(model_args or {"path": model.source}),
            "model_dtype": str(model.network.dtype),
            "device": str(model.device),
            "seeds": SEEDS,
            **self.settings.model_dump(),
        }
        plain: dict[str, Any] = json.loads(json.dumps(report, default=handle_non_serializable))
        return plain


def load(settings: TaskSettings) -> Tasks | None:
    """The tasks that are asked for, if any.

    Raises:
        NpftError: as :class:`Tasks`; or a limit or the like is given without a task.
    """
    if settings.tasks:
        return Tasks(settings)
    given = [name for name, value in settings.model_dump(exclude_defaults=True).items() if value]
    if given:
        raise NpftError(
            f"{', '.join(given)} of lm_eval is given without any task: add --tasks NAME,…"
        )
    return None


def evaluate_tasks(
    model: LanguageModel,
    tasks: Sequence[str],
    include_path: str | Path | None = None,
    limit: int | None = None,
    batch_size: int = 8,
    progress: Progress | None = None,
) -> list[Score]:
    """Scores of one model on tasks of the harness; for several, keep a :class:`Tasks`.

    Raises:
        NpftError: as :class:`Tasks`.
    """
    settings = TaskSettings(
        tasks=list(tasks),
        include_path=None if include_path is None else str(include_path),
        limit=limit,
        batch_size=batch_size,
    )
    return Tasks(settings).evaluate(model, progress).scores


def _scores(report: Any) -> list[Score]:
    """The numbers under ``METRIC,FILTER`` of every task and group."""
    scores = []
    for task, values in report["results"].items():
        for key, value in values.items():
            metric, comma, kind = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, (int, float)):
                continue
            error = values.get(f"{metric}_stderr,{kind}")
            stderr = float(error) if isinstance(error, (int, float)) else None
            if stderr is not None and not math.isfinite(stderr):
                stderr = None
            name = metric if kind == "none" else f"{metric},{kind}"
            count = int(values.get("sample_len") or values.get("sample_count", {}).get(key) or 0)
            scores.append(Score(task, name, float(value), stderr, count))
    return scores


@contextmanager
def _seeded() -> Iterator[None]:
    """The harness's seeds for tasks that draw from global generators, which get back their state.

    ``simple_evaluate`` would set those seeds for good.
    """
    plain, legacy = random.getstate(), np.random.get_state()
    try:
        with seeding.forked(SEEDS["torch"]):
            random.seed(SEEDS["random"])
            np.random.seed(SEEDS["numpy"])
            yield
    finally:
        random.setstate(plain)
        np.random.set_state(legacy)


@contextmanager
def _quietly() -> Iterator[None]:
    """Without the bars and remarks of the harness: progress is ours to show."""
    import datasets
    from lm_eval.api import task as building

    logger = logging.getLogger("lm_eval")
    level, bar = logger.level, building.tqdm
    bars = datasets.are_progress_bars_disabled()
    logger.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    building.tqdm = partial(bar, disable=True)
    try:
        yield
    finally:
        logger.setLevel(level)
        building.tqdm = bar
        if not bars:
            datasets.enable_progress_bars()
