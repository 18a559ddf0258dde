"""Questions from JSON lines in the folder that NPFT_DATA names, for the task files beside this.

Each line is ``{"question": str, "choices": [str, ...], "label": int}``.
"""

import json
import os
from pathlib import Path

import datasets


def piqa(**_):
    """PIQA (Bisk et al. 2020), from piqa.jsonl."""
    return _questions("piqa.jsonl")


def arc_easy(**_):
    """ARC-Easy (Clark et al. 2018), from arc-easy.jsonl."""
    return _questions("arc-easy.jsonl")


def _questions(name):
    file = Path(os.environ.get("NPFT_DATA", ""), name)
    if not file.is_file():
        raise FileNotFoundError(f"set NPFT_DATA to the folder that holds {name}")
    lines = file.read_text(encoding="utf-8").splitlines()
    return {"test": datasets.Dataset.from_list([json.loads(line) for line in lines])}
