"""Tables, in Markdown, and figures from the rows of ``tables.py``."""

from __future__ import annotations

import json
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple


class Key(NamedTuple):
    """Where a number belongs."""

    study: str
    row: str
    setting: str
    text: str
    metric: str


Numbers = dict[Key, list[float]]
"""The values of all seeds."""


def report(output: Path) -> None:
    """Print every study that has rows, and draw its figure if it has one."""
    numbers = read(output)
    for study in dict.fromkeys(key.study for key in numbers):
        for text in dict.fromkeys(key.text for key in numbers if key.study == study):
            if any(key.text == text and key.metric == "kl" for key in numbers):
                print(f"\n### {study}, {text}: KL to the original (perplexity)\n")
                print(table(numbers, study, text))
    print_accuracies(output)
    figure4(numbers, output / "figure4.png")
    figure5(output, output / "figure5.png")


def read(output: Path) -> Numbers:
    """Every row of a folder, seeds together."""
    found: Numbers = defaultdict(list)
    for file in sorted(output.glob("*.jsonl")):
        for line in file.read_text().splitlines():
            row = json.loads(line)
            if "metric" in row:
                key = Key(row["study"], row["row"], setting(row), row["dataset"], row["metric"])
                found[key].append(row["value"])
    return dict(found)


def setting(row: dict[str, Any]) -> str:
    """Such as ``rtn-4-g64``."""
    if row["quantizer"] == "none":
        return "float"
    group = f"-g{row['group_size']}" if row["group_size"] else ""
    return f"{row['quantizer']}-{row['bits']}{group}"


def table(numbers: Numbers, study: str, text: str) -> str:
    """One text's table; every study begins with the untuned model and the default recipe."""
    here = [key for key in numbers if key.text == text and key.metric == "kl"]
    settings = list(dict.fromkeys(key.setting for key in here if key.study == study))
    own = list(dict.fromkeys(key.row for key in here if key.study == study))
    first = [("main", row) for row in ("original", "default") if study != "main" or row in own]
    rows = first + [
        (study, row) for row in own if study != "main" or row not in dict(first).values()
    ]
    rows = list(dict.fromkeys(rows))
    lines = [["model", *settings], ["---"] * (1 + len(settings))]
    for of, row in rows:
        cells = [cell(numbers, Key(of, row, name, text, "kl")) for name in settings]
        if any(cells):
            lines.append([row, *cells])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def print_accuracies(output: Path) -> None:
    """Tasks, where they were asked: accuracy in percent with its standard error, by model.

    Of several seeds it is their mean, with the standard error of one: the questions are the same.
    """
    seeds: dict[tuple[str, str, str, str], list[tuple[float, float]]] = defaultdict(list)
    for file in sorted(output.glob("*.jsonl")):
        for row in map(json.loads, file.read_text().splitlines()):
            if row.get("questions") and row["stderr"] is not None:
                of = row["dataset"], row["metric"], row["row"], setting(row)
                seeds[of].append((100 * row["value"], 100 * row["stderr"]))
    found: dict[tuple[str, str], dict[str, dict[str, str]]] = defaultdict(lambda: defaultdict(dict))
    for (task, metric, name, column), values in seeds.items():
        value, error = (statistics.fmean(numbers) for numbers in zip(*values, strict=True))
        found[task, metric][name][column] = f"{value:.1f} ± {error:.1f}"
    for (task, metric), rows in found.items():
        print(f"\n### {task}, {metric} in %, with its standard error\n")
        settings = list(dict.fromkeys(name for cells in rows.values() for name in cells))
        first = [name for name in ("original", "default") if name in rows]
        lines = [["model", *settings], ["---"] * (1 + len(settings))]
        for name in dict.fromkeys([*first, *rows]):
            lines.append([name, *(rows[name].get(column, "") for column in settings)])
        print("\n".join("| " + " | ".join(line) + " |" for line in lines))


def cell(numbers: Numbers, key: Key) -> str:
    """``.352 ± .004 −48% (46.1)``: mean and range of the seeds, change, perplexity."""
    if key not in numbers:
        return ""
    values = numbers[key]
    spread = f" ± {(max(values) - min(values)) / 2:.3f}" if len(values) > 1 else ""
    perplexity = statistics.fmean(numbers[key._replace(metric="perplexity")])
    return f"{statistics.fmean(values):.3f}{spread}{change(numbers, key)} ({perplexity:.4g})"


def change(numbers: Numbers, key: Key) -> str:
    """Against the untuned model through the same quantizer."""
    before = numbers.get(key._replace(study="main", row="original"), [0.0])[0]
    if not before or key.row == "original":
        return ""
    return f" {statistics.fmean(numbers[key]) / before - 1:+.0%}"


def orders(numbers: Numbers, better: str, worse: Iterable[str]) -> list[str]:
    """The cells of ``main`` in which ``better`` is not below every one of ``worse``."""
    wrong = []
    for key, values in numbers.items():
        if (key.study, key.row, key.metric) != ("main", better, "kl") or key.setting == "float":
            continue
        others = {row: numbers[key._replace(row=row)] for row in worse}
        beaten = [row for row, its in others.items() if max(values) >= min(its)]
        wrong += [f"{key.setting} on {key.text}: {row}" for row in beaten]
    return wrong


def figure4(numbers: Numbers, file: Path) -> None:
    """KL against the share of the weights that get noise."""
    untuned = {(k.setting, k.text) for k in numbers if (k.study, k.row) == ("main", "original")}
    keys = [k for k in numbers if k.study == "gamma" and k.metric == "kl"]
    keys = [k for k in keys if (k.setting, k.text) in untuned]
    if not keys:
        return
    axes, canvas = axes_of(2)
    for panel, text in zip(axes, dict.fromkeys(k.text for k in keys), strict=False):
        for name in dict.fromkeys(k.setting for k in keys if k.setting != "float"):
            shares = {float(k.row): k for k in keys if (k.setting, k.text) == (name, text)}
            all_of_them = Key("main", "default", name, text, "kl")
            points = {**shares, **({1.0: all_of_them} if all_of_them in numbers else {})}
            before = numbers[all_of_them._replace(row="original")][0]
            x = sorted(points)
            panel.plot(x, [numbers[points[g]][0] / before for g in x], marker="o", label=name)
        panel.axhline(1, color="grey", linewidth=0.8)
        panel.set(xscale="log", xlabel="share of weights that get noise", title=text)
        panel.set_ylabel("KL, tuned / untuned")
    axes[0].legend(fontsize="small")
    canvas.savefig(file, dpi=150)


def figure5(output: Path, file: Path) -> None:
    """The loss under noise, with the clean term and without."""
    folders = sorted(output.glob("clean-term-*/losses.json"))
    if not folders:
        return
    axes, canvas = axes_of(2)
    for losses in folders:
        steps = json.loads(losses.read_text())
        label = losses.parent.name.removeprefix("clean-term-").rpartition("-")[0].replace("-", " ")
        for panel, term in zip(axes, ("noisy", "clean"), strict=True):
            values = [math.nan if step[term] is None else step[term] for step in steps]
            mean = [statistics.fmean(values[max(0, i - 15) : i + 1]) for i in range(len(values))]
            panel.plot([step["step"] for step in steps], mean, label=label)
            panel.set(xlabel="step", ylabel="loss (nats/token)", title=f"{term} loss")
    axes[0].legend()
    canvas.savefig(file, dpi=150)


def axes_of(panels: int) -> tuple[Any, Any]:
    """Panels side by side."""
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(4.5 * panels, 3.5), layout="constrained")
    return list(canvas.subplots(1, panels)), canvas
