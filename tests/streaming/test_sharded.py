"""A model sharded over three processes is the same model, with a third of it in each."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from refusals import refusal
from sharded_worker import WAYS, tuned
from tiny import save_tiny, tiny_tokens
from torch import Tensor

from npft import fingerprints, models
from npft.artifacts import LanguageModel
from npft.processes import ALONE
from npft.scorers import Fisher, Magnitude
from npft.streaming import OverProcesses

TESTS = Path(__file__).parents[1]
COUNT = 3
# No number of rows is divisible by three but that of the tied embedding; biases; GPT-2's Conv1D.
SHAPES: dict[str, dict[str, Any]] = {
    "Llama": {"hidden_size": 40, "intermediate_size": 61, "num_hidden_layers": 4},
    "OPT": {"ffn_dim": 61, "num_hidden_layers": 4},
    "GPT2": {"n_layer": 4},
}
every_architecture = pytest.mark.parametrize("architecture", SHAPES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, and what each process found with them."""
    place = tmp_path_factory.mktemp("sharded")
    for architecture, shape in SHAPES.items():
        save_tiny(place / architecture, architecture, **shape)
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node")
    done = subprocess.run(
        [*launcher, str(COUNT), str(TESTS / "sharded_worker.py"), str(place)],
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": str(TESTS),
        },
    )
    assert done.returncode == 0, done.stderr
    return place


def found(folder: Path, architecture: str) -> list[dict[str, Any]]:
    """By process."""
    files = (folder / f"{rank}.pt" for rank in range(COUNT))
    return [torch.load(file, weights_only=False)[architecture] for file in files]


def resident(folder: Path, architecture: str) -> LanguageModel:
    return models.load(str(folder / architecture), device="cpu")


def assert_scores(mine: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert mine.keys() == expected.keys()
    for name, values in expected.items():
        torch.testing.assert_close(
            mine[name], values, rtol=1e-3, atol=1e-5 * float(values.abs().max())
        )


@every_architecture
def test_predictions_and_scores(folder: Path, architecture: str) -> None:
    """Two windows are scored by two processes; the third only takes part in the gathers."""
    model = resident(folder, architecture)
    with torch.no_grad():
        logits = model.network(input_ids=tiny_tokens(), use_cache=False).logits
    batches = tiny_tokens(windows=2).split(1)
    fisher, magnitude = (dict(s.score(model, batches)) for s in (Fisher(), Magnitude()))
    for mine in found(folder, architecture):
        torch.testing.assert_close(mine["logits"], logits, rtol=1e-5, atol=1e-5)
        assert_scores(mine["fisher"], fisher)
        assert_scores(mine["adapted"], fisher)  # a fresh adapter changes nothing
        for name, values in magnitude.items():
            assert torch.equal(mine["magnitude"][name], values)
            assert torch.equal(mine["read"][name], values)  # from a file, as a run goes on


@pytest.mark.parametrize("way", WAYS)
@every_architecture
def test_tuning(folder: Path, architecture: str, way: str) -> None:
    """The last step leaves two processes without a window."""
    expected = tuned(resident(folder, architecture), way, ALONE)
    for mine in found(folder, architecture):
        for one, other in zip(expected, mine["tuned"][way], strict=True):
            assert other.noisy == pytest.approx(one.noisy, rel=1e-3, abs=1e-6)
            assert other.clean == pytest.approx(one.clean, rel=1e-3, abs=1e-6)


@every_architecture
def test_each_process_has_its_share_alone(folder: Path, architecture: str) -> None:
    model = resident(folder, architecture)
    prefix = next(iter(model.layers)).rpartition(".0.")[0]
    expected = {}
    for name, parameter in model.network.named_parameters():
        if name.startswith(f"{prefix}."):
            rows = -(-len(parameter) // COUNT) if parameter.dim() > 1 else len(parameter)
            expected[name.removeprefix(f"{prefix}.")] = rows * parameter[0].nbytes
    for mine in found(folder, architecture):
        assert mine["resting"] == expected
        assert mine["whole"] <= 2  # matrices at once while it was read: one, and the next


@every_architecture
def test_the_main_process_ends_with_all_of_it(folder: Path, architecture: str) -> None:
    """To the bit, and as any streamed model; the others have nothing left."""
    model = resident(folder, architecture)
    fingerprint = fingerprints.of_model(model)
    main, *others = found(folder, architecture)
    assert [mine["fingerprint"] for mine in (main, *others)] == [fingerprint] * COUNT
    assert main["settled"] == fingerprint
    assert torch.equal(main["copied"], main["logits"])
    assert [mine["left"] for mine in others] == [0] * (COUNT - 1)
    assert len({mine["loads"] for mine in (main, *others)}) == 1


def test_what_shards_cannot_do_is_refused(folder: Path) -> None:
    for mine in found(folder, "Llama"):
        read, copied = mine["refused"]
        assert "is sharded over the processes: read it in the scope of model.reading" in read
        assert "cannot be copied" in copied
    told = refusal(lambda: OverProcesses(torch.device("cpu"), ALONE))
    assert "start them with accelerate launch" in told
