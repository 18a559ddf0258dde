"""``npft run --objective tskd``, as a user and as tuning meet it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny import CONFIGS, save_tiny, tiny_model, tiny_tokens

from npft.contracts import Loss
from npft.errors import NpftError
from npft.losses import divergence, sequence_losses
from npft.objectives import KL
from npft.outliers import select
from npft.plugins import discover
from npft.samplers import Residual, StepUniform
from npft.testing import check_objective
from npft.tuning import State, Tuning, tune
from npft_tskd.course import digest, spread
from npft_tskd.objective import TSKD


@pytest.mark.parametrize(
    "options",
    [{}, {"memories": 3, "weight": 30}, {"interval": 2, "stages": 1, "sink": 0}, {"fits": 0}],
)
def test_contract(options: dict[str, int]) -> None:
    check_objective(TSKD(**options))


def test_it_is_found() -> None:
    assert discover().find("objective", "tskd").package == "npft-tskd"


def outputs(seed: int, blocks: int = 3) -> SimpleNamespace:
    random = torch.Generator().manual_seed(seed)
    hidden = [torch.randn(2, 8, 5, generator=random) for _ in range(blocks + 1)]
    return SimpleNamespace(
        logits=torch.randn(2, 8, 16, generator=random).requires_grad_(),
        hidden_states=tuple(state.requires_grad_() for state in hidden),
    )


TOKENS = torch.arange(16).view(2, 8)


def test_without_reviews_it_is_kl() -> None:
    begun, student, teacher = TSKD().begin(0), outputs(1), outputs(9)
    assert torch.equal(begun.loss(student, TOKENS, teacher), KL().loss(student, TOKENS, teacher))


def test_the_papers_terms() -> None:
    student, teacher = outputs(1), outputs(9)
    loss = TSKD(cross_entropy=1, temperature=4).loss(student, TOKENS, teacher)
    soft = 16 * divergence(student.logits / 4, teacher.logits / 4)
    torch.testing.assert_close(loss, soft + sequence_losses(student.logits, TOKENS).mean())


def gradients(begun: Loss, epochs: int) -> list[bool]:
    """Whether a loss of each epoch moves the hidden states."""
    found = []
    for epoch in range(epochs):
        if epoch:
            begun.new_epoch(epoch)
        student = outputs(epoch)
        begun.loss(student, TOKENS, outputs(9)).backward()
        found.append(any(state.grad is not None for state in student.hidden_states))
    return found


def test_hidden_states_count_in_review_epochs_alone() -> None:
    assert gradients(TSKD(memories=2).begin(0), 6) == [False, False, True] * 2


def test_the_predictors_learn_while_the_student_waits() -> None:
    """The same student again and again: its reviews get better, by nothing but the fits."""

    def losses(fits: int) -> list[float]:
        begun = TSKD(memories=1, fits=fits).begin(0)
        found = []
        for epoch in range(40):
            begun.new_epoch(epoch)
            total = begun.loss(outputs(epoch % 2), TOKENS, outputs(9))
            kl = KL().loss(outputs(epoch % 2), TOKENS, outputs(9))
            found.append(float((total - kl).detach()))
        return found[1::2]

    static, learnt = losses(0), losses(10)
    assert min(static) == pytest.approx(max(static))
    assert learnt[-1] < 0.7 * static[-1]


@pytest.mark.parametrize(
    ("blocks", "stages", "expected"),
    [(30, 4, [7, 14, 22, 29]), (12, 3, [4, 7, 11]), (2, 2, [1, 1]), (1, 1, [1])],
)
def test_stages_are_spread_over_the_blocks(blocks: int, stages: int, expected: list[int]) -> None:
    assert spread(blocks, stages) == expected


def test_windows_are_known_by_their_tokens() -> None:
    tokens = torch.tensor([[1, 2], [2, 1], [1, 2]])
    one, two, again = map(digest, tokens)
    assert one == again != two
    assert digest(tokens[0].int()) == one


def test_windows_shorter_than_the_sink_are_refused() -> None:
    with pytest.raises(NpftError, match="leaves out the first 8 tokens of windows of 8"):
        TSKD(sink=8).loss(outputs(1), TOKENS, outputs(9))


@pytest.mark.parametrize("terms", ["one", "both"])
@pytest.mark.parametrize("architecture", ["Llama", "GPT2"])
def test_tuning_is_repeated_bit_for_bit_and_reviews_matter(architecture: str, terms: str) -> None:
    assert architecture in CONFIGS
    model, windows = tiny_model(architecture), tiny_tokens(8)
    everywhere = select(((n, layer.weight.abs()) for n, layer in model.layers.items()), 1.0)
    settings = Tuning(epochs=4, lr=1e-3, rank=4, terms=terms)
    sampler = Residual(quantizers=("rtn",))

    def adapter(objective: TSKD | KL) -> torch.Tensor:
        made = tune(model, windows, everywhere, sampler, objective, settings)
        return torch.cat([made.weights[name].flatten() for name in sorted(made.weights)])

    first = adapter(TSKD(memories=1))
    assert torch.equal(first, adapter(TSKD(memories=1)))
    assert torch.equal(adapter(TSKD(memories=3, weight=0)), adapter(KL()))
    assert not torch.equal(first, adapter(KL()))


class Stopped(BaseException):
    """As sudden as Ctrl-C."""


class Kept:
    """A checkpoint that stops the training after so many epochs, once."""

    def __init__(self, stop_after: int | None) -> None:
        self.states: list[State] = []
        self.stop_after = stop_after

    def load(self) -> State | None:
        return self.states[-1] if self.states else None

    def save(self, state: State) -> None:
        copies = {name: values.detach().clone() for name, values in state.tensors.items()}
        self.states.append(State(copies, json.loads(json.dumps(state.numbers))))
        if len(self.states) == self.stop_after:
            self.stop_after = None
            raise Stopped


@pytest.mark.parametrize("after", [1, 2, 3])
def test_a_tuning_goes_on_as_if_nothing_had_been(after: int) -> None:
    """After a memory, after a review, after the next memory."""
    model, windows = tiny_model(), tiny_tokens(8)
    everywhere = select(((n, layer.weight.abs()) for n, layer in model.layers.items()), 1.0)

    def train(checkpoint: Kept) -> dict[str, torch.Tensor]:
        made = tune(
            model, windows, everywhere, StepUniform(), TSKD(memories=1),
            Tuning(epochs=4, lr=1e-2, rank=4), checkpoint=checkpoint,
        )  # fmt: skip
        return made.weights

    checkpoint = Kept(after)
    with pytest.raises(Stopped):
        train(checkpoint)
    continued, whole = train(checkpoint), train(Kept(None))
    assert all(torch.equal(continued[name], values) for name, values in whole.items())
    # and it is by what the losses told: without its memories the end is another
    kept = checkpoint.states[0].tensors
    forgetful = Kept(None)
    forgetful.states = [
        State(
            {n: v for n, v in kept.items() if not n.startswith("objective.memory.")},
            checkpoint.states[0].numbers,
        )
    ]
    other = train(forgetful)
    assert any(not torch.equal(other[name], values) for name, values in whole.items())


def test_a_run(tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "model")
    text = tmp_path / "text.txt"
    text.write_text("The harbour silted up, and the trade moved across the bay. " * 40)
    command = [sys.executable, "-m", "npft", "run", "--model", str(model), "--json"]
    command += ["--calibration", str(text), "--evaluate", f"own={text}", "--objective", "tskd"]
    command += ["-o", "objective.memories=1", "-o", "tuning.epochs=2", "-o", "tuning.rank=4"]
    command += ["--samples", "8", "--context", "32", "--quant", "rtn", "--device", "cpu"]
    done = subprocess.run(
        [*command, "--output", str(tmp_path / "run")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert {row["model"] for row in rows} == {"original", "control", "tuned"}
