"""The small version of the paper's tables: on a small model that has learned something."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import save_tiny

from npft import data, models
from npft.seeding import isolated_rng

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def learn(folder: Path, steps: int = 500) -> None:
    """Teach a tiny Llama bytes of English, so that there is something to lose."""
    loaded = models.load(str(folder), device="cpu")
    network = loaded.network
    for parameter in network.parameters():
        parameter.requires_grad_(True)
        if parameter.dim() == 2:
            parameter.data.mul_(0.25)  # back to what trains
    text = data.windows(loaded.tokenizer, data.load_text(data.BUILTIN), 64, data.BUILTIN)
    optimizer = torch.optim.AdamW(network.parameters(), lr=4e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    with isolated_rng(0, "learn"):
        for _ in range(steps):
            tokens = text[torch.randint(len(text), (24,))]
            network(input_ids=tokens, labels=tokens).loss.backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    models.save(loaded, folder)


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tables")
    model = save_tiny(folder / "model", hidden_size=64, intermediate_size=160)
    learn(model)
    for name, split in (("c4-calibration", "calibration"), ("c4-validation", "held-back")):
        lines = (json.dumps({"text": text}) for text in data.load_text(data.BUILTIN, split))
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    held_back = data.load_text(data.BUILTIN, "held-back")
    (folder / "wikitext2-validation.txt").write_text("\n\n".join(held_back[::-1]))
    command = [sys.executable, str(BENCHMARKS / "tables.py"), "main", "--model", str(model)]
    command += ["--data", str(folder), "--output", str(folder / "runs"), "--seeds", "1"]
    command += [
        "--context",
        "64",
        "--eval-samples",
        "48",
        "--quant",
        "rtn",
        "kmeans",
        "--bits",
        "3",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    (folder / "printed").write_text(done.stdout)
    print(done.stdout, done.stderr)
    return folder


@pytest.fixture(scope="module")
def printing():
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import printing
    finally:
        sys.path.remove(str(BENCHMARKS))
    return printing


def test_the_default_is_below_every_other_row(measured, printing) -> None:
    others = ("original", "control", "control, lr / 10", "paper", "released")
    numbers = printing.read(measured / "runs")
    assert len({key.setting for key in numbers}) == 3  # float, rtn-3, kmeans-3
    assert printing.orders(numbers, "default", others) == []


def test_an_order_that_does_not_hold_is_told(measured, printing) -> None:
    numbers = printing.read(measured / "runs")
    assert "rtn-3 on c4: default" in printing.orders(numbers, "original", ("default",))


def test_what_is_printed_are_the_rows(measured) -> None:
    rows = [json.loads(line) for line in (measured / "runs/main-default-0.jsonl").open()]
    (kl,) = (
        row["value"]
        for row in rows
        if (row.get("quantizer"), row.get("bits"), row.get("dataset")) == ("rtn", 3, "c4")
        and row["metric"] == "kl"
    )
    table = (measured / "printed").read_text().split("### ")[1]
    assert table.startswith("main, c4")
    (line,) = (line for line in table.splitlines() if line.startswith("| default"))
    assert f" {kl:.3f} " in line.split("|")[3]
