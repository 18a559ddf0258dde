"""Which tasks of lm-evaluation-harness are asked for, and loading them with their questions."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from npft.errors import NpftError, in_one_line


class TaskSettings(BaseModel):
    """Which tasks, and how; the words are those of ``lm_eval``."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    tasks: list[str] = Field(default_factory=list, description="names, globs or .yaml files")
    include_path: str | None = Field(None, description="folder of further task files")
    limit: int | None = Field(None, ge=1, description="questions per task, for a quick look")
    num_fewshot: int | None = Field(None, ge=0, description="examples before each question")
    batch_size: int = Field(8, ge=1, description="questions at once")


def load_tasks(settings: TaskSettings) -> Any:
    """The harness's ``TaskDict``, with the number of examples set.

    Raises:
        NpftError: a task is unknown or cannot be loaded, or the folder is not there.
    """
    from lm_eval.tasks import TaskManager

    folder = settings.include_path
    if folder is not None and not Path(folder).is_dir():
        raise NpftError(
            f"--include-path {folder!r} is no folder: give one that holds task files (.yaml)"
        )
    # Reading the harness's own 14,000 tasks takes seconds: only if somebody asks for one.
    manager = TaskManager(include_path=folder, include_defaults=False)
    if not all(_found(manager, name) for name in settings.tasks):
        manager = TaskManager(include_path=folder)
    names: dict[str, None] = {}
    for name in settings.tasks:
        found = _found(manager, name)
        if not found:
            raise NpftError(_unknown(name, manager.all_tasks, folder))
        names.update(dict.fromkeys(found))
    try:
        loaded = manager.load(list(names))
    except Exception as error:
        raise NpftError(
            f"tasks {', '.join(names)} cannot be loaded ({in_one_line(error)}): the harness's own "
            "need their data from the Hugging Face hub; for local data give task files with "
            "--include-path"
        ) from error
    for task in loaded["tasks"].values():
        _set_examples(task, settings.num_fewshot)
    return loaded


def _found(manager: Any, name: str) -> list[str]:
    if name.endswith(".yaml"):
        return [name] if Path(name).is_file() else []
    matches: list[str] = manager.match_tasks([name])
    return matches


def _unknown(name: str, known: list[str], folder: str | None) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    where = f" nor in {folder!r}" if folder else "; further ones need --include-path"
    return f"there is no task {name!r}: {hint}it is none of the harness's{where} (lm_eval ls tasks)"


def _set_examples(task: Any, asked: int | None) -> None:
    """As ``simple_evaluate`` does: a task that sets 0 keeps it, and 0 is the default."""
    default = task.get_config("num_fewshot")
    if asked is not None and default != 0:
        task.set_config(key="num_fewshot", value=asked)
    elif default is None:
        task.set_config(key="num_fewshot", value=0)
