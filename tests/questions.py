"""Made-up questions for the task files of benchmarks/tasks, and a model to ask."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path

from tiny import tiny_network, tiny_tokenizer

from npft import models
from npft.artifacts import LanguageModel

TASKS = Path(__file__).parents[1] / "benchmarks" / "tasks"
COUNT = 24


def write_questions(folder: Path) -> Path:
    """``piqa.jsonl`` and ``arc-easy.jsonl``, some with choices of one token, some with three."""
    draw = random.Random(0)

    def words(most: int) -> str:
        return " ".join(draw.choice(["red", "dog", "to", "runs", "a"]) for _ in range(most))

    for name in ("piqa.jsonl", "arc-easy.jsonl"):
        lines = []
        for index in range(COUNT):
            if index % 3 == 0:
                choices = draw.sample("abcdef", 4)
            else:
                choices = [f"{words(draw.randint(1, 3))} {n}" for n in range(2 + index % 2)]
            label = draw.randrange(len(choices))
            lines.append({"question": f"{words(4)}?", "choices": choices, "label": label})
        (folder / name).write_text("\n".join(json.dumps(line) for line in lines))
    return folder


def reading_model(architecture: str = "Llama", seed: int = 0) -> LanguageModel:
    """A tiny model with a context for questions and a tokenizer that marks the end of a text."""
    longer = {"n_positions" if architecture == "GPT2" else "max_position_embeddings": 512}
    tokenizer = copy.deepcopy(tiny_tokenizer())
    tokenizer.eos_token = "~"
    return models.wrap(tiny_network(architecture, seed, **longer), tokenizer)
