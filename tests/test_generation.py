"""Text out of run folders."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner
from tiny import tiny_model

from npft import checkpoints, generation
from npft.cli import cli
from npft.errors import NpftError
from npft.packed.model import pack_model
from npft.quantizers.rtn import RTN


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    model = tiny_model()
    for bits in (3, 4):
        quantized = RTN(bits=bits).quantize(model, [])
        quantized.save(folder / "quantized" / quantized.label)
    RTN(bits=2).quantize(model, []).save(folder / "quantized" / "original" / "rtn-2")
    return folder


def test_a_checkpoint_continues_a_prompt(run: Path) -> None:
    arguments = [str(run), "hello", "--quant", "rtn-4", "--tokens", "9", "--device", "cpu"]
    said = CliRunner().invoke(cli, ["generate", *arguments], catch_exceptions=False)
    assert said.exit_code == 0
    expected = pack_model(checkpoints.load(run / "quantized" / "rtn-4", device="cpu"))
    assert said.stdout == expected.generate("hello", 9) + "\n"


def test_a_seed_gives_the_same_text_again(run: Path) -> None:
    model = generation.load(run / "quantized" / "rtn-3", device="cpu")
    once, again, other = (
        generation.generate(model, "hello", 20, temperature=5.0, seed=seed) for seed in (1, 1, 2)
    )
    assert once == again
    assert once != other


def test_which_checkpoint(run: Path) -> None:
    place = run / "quantized"
    assert generation.checkpoint_of(run, "rtn-3") == place / "rtn-3"
    assert generation.checkpoint_of(place / "rtn-3", None) == place / "rtn-3"
    assert generation.checkpoint_of(run, None, "original") == place / "original" / "rtn-2"


@pytest.mark.parametrize(
    ("quant", "of", "told"),
    [
        (None, "tuned", "has rtn-3, rtn-4: choose one with --quant"),
        ("rtn-5", "tuned", "has no checkpoint 'rtn-5': there is rtn-3, rtn-4"),
        (None, "control", "has no packed checkpoints of the control model: make some with npft"),
    ],
)
def test_choices_that_cannot_be_made(run: Path, quant: str | None, of: str, told: str) -> None:
    with pytest.raises(NpftError, match=told):
        generation.checkpoint_of(run, quant, of)


def test_a_negative_temperature_is_refused(run: Path) -> None:
    model = generation.load(run / "quantized" / "rtn-4", device="cpu")
    with pytest.raises(NpftError, match=r"temperature -1\.0 is negative"):
        generation.generate(model, "hello", 4, temperature=-1.0)
