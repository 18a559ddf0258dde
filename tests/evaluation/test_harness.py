"""Tasks of lm-evaluation-harness against the harness's own Hugging Face model and a plain loop."""

from __future__ import annotations

import json
import logging
import math
import random
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from questions import COUNT, TASKS, reading_model, write_questions
from refusals import refusal
from watching import Watching

pytest.importorskip("lm_eval")

from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

from npft import models
from npft.artifacts import LanguageModel
from npft.evaluation import harness
from npft.evaluation.harness import Score, Tasks, evaluate_tasks
from npft.evaluation.harness_tasks import TaskSettings
from npft.quantizers import RTN

NAMES = ["piqa_local", "arc_easy_local"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("NPFT_DATA", str(write_questions(tmp_path)))
    return tmp_path


def asked(**options: Any) -> Tasks:
    return Tasks(TaskSettings(tasks=NAMES, include_path=str(TASKS), **options))


def of_the_harness(folder: Path, **options: Any) -> dict[str, dict[str, Any]]:
    """What ``lm_eval --model hf`` does in its process, on a Hugging Face folder."""
    results = simple_evaluate(
        model="hf",
        model_args={"pretrained": str(folder), "dtype": "float32"},
        tasks=NAMES,
        task_manager=TaskManager(include_path=str(TASKS), include_defaults=False),
        device="cpu",
        batch_size=8,
        log_samples=False,
        **options,
    )
    assert results is not None
    return results["results"]


def agree(scores: list[Score], expected: dict[str, dict[str, Any]]) -> None:
    assert {(score.task, score.metric) for score in scores} == {
        (name, metric) for name in NAMES for metric in ("acc", "acc_norm")
    }
    for score in scores:
        theirs = expected[score.task]
        assert score.value == theirs[f"{score.metric},none"]
        assert score.stderr == theirs[f"{score.metric}_stderr,none"]


def likelihood(model: LanguageModel, question: str, answer: str) -> float:
    """ln p(answer | question), token by token."""
    before, after = (model.tokenizer.encode(text) for text in (question, answer))
    with torch.no_grad():
        logits = model.network(input_ids=torch.tensor([before + after])).logits[0].double()
    predicted = logits[len(before) - 1 : -1].log_softmax(-1)
    return sum(float(row[token]) for row, token in zip(predicted, after, strict=True))


@pytest.mark.parametrize("architecture", ["Llama", "GPT2", "OPT"])
def test_the_scores_are_exactly_those_of_the_harness(architecture, tmp_path) -> None:
    model = reading_model(architecture)
    models.save(model, tmp_path / "model")
    agree(asked().evaluate(model).scores, of_the_harness(tmp_path / "model"))


def test_accuracy_and_its_error_by_a_plain_loop(folder) -> None:
    model = reading_model()
    scores = {(s.task, s.metric): s for s in asked().evaluate(model).scores}
    right: dict[str, list[bool]] = {"acc": [], "acc_norm": []}
    for line in (folder / "piqa.jsonl").read_text().splitlines():
        about = json.loads(line)
        question = f"Question: {about['question']}\nAnswer:"
        found = [likelihood(model, question, f" {choice}") for choice in about["choices"]]
        by_length = [value / len(c) for value, c in zip(found, about["choices"], strict=True)]
        right["acc"].append(int(np.argmax(found)) == about["label"])
        right["acc_norm"].append(int(np.argmax(by_length)) == about["label"])
    for metric, answers in right.items():
        score = scores["piqa_local", metric]
        share = sum(answers) / COUNT
        assert score.value == pytest.approx(share)
        assert score.stderr == pytest.approx(math.sqrt(share * (1 - share) / (COUNT - 1)))
        assert score.questions == COUNT


def test_one_set_of_tasks_serves_every_model(tmp_path) -> None:
    """Few-shot examples are drawn from a stream: each model must be shown the same ones."""
    tasks = asked(num_fewshot=2)
    first, quantized = reading_model(), RTN(bits=2).quantize(reading_model(), []).model
    for name, model in [("first", first), ("quantized", quantized)]:
        models.save(model, tmp_path / name)
        expected = of_the_harness(tmp_path / name, num_fewshot=2)
        agree(tasks.evaluate(model).scores, expected)
    assert tasks.evaluate(first).scores == tasks.evaluate(first).scores
    assert tasks.evaluate(first).scores != tasks.evaluate(quantized).scores


def test_the_function_for_one_model_and_a_limit() -> None:
    model = reading_model()
    scores = evaluate_tasks(model, ["piqa_local"], TASKS, limit=5, batch_size=2)
    assert [(score.task, score.questions) for score in scores] == [("piqa_local", 5)] * 2
    assert scores != evaluate_tasks(model, ["piqa_local"], TASKS)


def test_random_state_model_and_tokenizer_are_left_alone() -> None:
    model = reading_model()
    random.seed(5)
    np.random.seed(6)
    torch.manual_seed(7)
    states = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    weights = {name: value.clone() for name, value in model.network.state_dict().items()}
    special = dict(model.tokenizer.special_tokens_map)
    asked().evaluate(model)
    assert random.getstate() == states[0]
    assert np.array_equal(np.random.get_state()[1], states[1])
    assert torch.equal(torch.get_rng_state(), states[2])
    assert model.tokenizer.special_tokens_map == special
    for name, value in model.network.state_dict().items():
        assert torch.equal(value, weights[name])


def test_progress_is_ours_and_the_harness_is_quiet(capfd, caplog, folder) -> None:
    caplog.set_level(logging.DEBUG)
    lines = (folder / "piqa.jsonl").read_text() + "\n" + (folder / "arc-easy.jsonl").read_text()
    choices = sum(len(json.loads(line)["choices"]) for line in lines.splitlines())
    watching = Watching()
    asked().evaluate(reading_model(), watching, "answering")
    assert watching.done == {"answering": [choices, choices]}
    assert watching.notes == []
    assert capfd.readouterr() == ("", "")
    assert not [record for record in caplog.records if record.name.startswith("lm_eval")]


def test_requests_that_do_not_fit_the_context_are_told(folder) -> None:
    """The last token is only predicted, so that one more than the context fits."""
    model, watching = reading_model(), Watching()
    model.network.config.max_position_embeddings = 40
    asked().evaluate(model, watching, "answering")
    lengths = []
    for name in ("piqa.jsonl", "arc-easy.jsonl"):
        for line in (folder / name).read_text().splitlines():
            about = json.loads(line)
            start = len(f"Question: {about['question']}\nAnswer:")
            lengths += [start + len(f" {choice}") for choice in about["choices"]]
    (note,) = watching.notes
    long = sum(length > 41 for length in lengths)
    assert 0 < long < len(lengths)
    assert f"{long} of {len(lengths)} requests are longer than the model's context of 40" in note


def test_local_questions_need_no_network(monkeypatch) -> None:
    def connect(*arguments: Any) -> None:
        raise AssertionError(f"a connection to {arguments[1:]}")

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket, "getaddrinfo", connect)
    assert evaluate_tasks(reading_model(), ["piqa_local"], TASKS, limit=2)


def test_rows_and_the_harnesss_own_report() -> None:
    answers = asked(limit=6).evaluate(reading_model(), model_args={"path": "r", "model": "tuned"})
    about = {"model": "tuned", "quantizer": "none", "bits": 32, "group_size": 0, "avg_bits": 32.0}
    rows = answers.rows(about)
    assert [(r.dataset, r.metric, r.value, r.stderr) for r in rows] == [
        (s.task, s.metric, s.value, s.stderr) for s in answers.scores
    ]
    assert {(row.model, row.questions, row.tokens) for row in rows} == {("tuned", 6, 0)}
    report = json.loads(json.dumps(answers.report))
    assert report["results"]["piqa_local"]["acc,none"] == rows[0].value
    assert report["n-samples"]["piqa_local"] == {"original": COUNT, "effective": 6}
    assert report["config"]["model_args"] == {"path": "r", "model": "tuned"}
    assert set(report) >= {"results", "configs", "versions", "n-shot", "higher_is_better"}


def test_one_question_has_no_standard_error() -> None:
    scores = evaluate_tasks(reading_model(), ["piqa_local"], TASKS, limit=1)
    assert [score.stderr for score in scores] == [None, None]


def test_a_task_file_by_its_path_and_a_pattern() -> None:
    model = reading_model()
    by_name = evaluate_tasks(model, ["arc_easy_local", "piqa_local"], TASKS)
    assert evaluate_tasks(model, [str(TASKS / "piqa_local.yaml")]) == by_name[2:]
    assert evaluate_tasks(model, ["*_local"], TASKS) == by_name


def test_an_unknown_task_names_the_nearest() -> None:
    ask = TaskSettings(tasks=["piqa_locl"], include_path=str(TASKS))
    refusal(lambda: Tasks(ask), "no task 'piqa_locl'", "did you mean 'piqa_local'", str(TASKS))


def test_data_that_are_not_there(monkeypatch) -> None:
    monkeypatch.delenv("NPFT_DATA")
    refusal(asked, "piqa_local, arc_easy_local cannot be loaded", "set NPFT_DATA", "--include-path")


def test_an_include_path_that_is_no_folder() -> None:
    ask = TaskSettings(tasks=NAMES, include_path="nowhere")
    refusal(lambda: Tasks(ask), "--include-path 'nowhere' is no folder")


def test_options_without_a_task() -> None:
    assert harness.load(TaskSettings()) is None
    refusal(lambda: harness.load(TaskSettings(limit=3)), "limit", "without any task")


@pytest.mark.parametrize("without", ["tokenizer", "end"])
def test_a_model_that_cannot_be_asked(without) -> None:
    model = reading_model()
    if without == "end":
        model.tokenizer.eos_token = None
    else:
        model = models.wrap(model.network, None)
    refusal(lambda: asked().evaluate(model), "bos_token or eos_token")
