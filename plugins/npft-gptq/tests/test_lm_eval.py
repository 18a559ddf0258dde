"""``lm_eval --model hf`` on a folder in the GPTQ format answers as the model in memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from questions import COUNT, TASKS, reading_model, write_questions
from tiny import tiny_tokens

from npft.contracts import Quantizer
from npft.evaluation.harness import evaluate_tasks
from npft.quantizers import RTN
from npft_gptq import GPTQ

NAMES = ["piqa_local", "arc_easy_local"]


@pytest.mark.parametrize(
    "quantizer",
    [GPTQ(bits=4, group_size=32), RTN(bits=4, group_size=32, format="gptq")],
    ids=["gptq", "rtn"],
)
def test_the_harness_opens_it(
    quantizer: Quantizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NPFT_DATA", str(write_questions(tmp_path)))
    quantized = quantizer.quantize(reading_model(), [tiny_tokens(8, 32)])
    quantized.save(tmp_path / "q")
    command = [sys.executable, "-m", "lm_eval", "--model", "hf", "--device", "cpu"]
    command += ["--model_args", f"pretrained={tmp_path / 'q'},dtype=bfloat16"]
    command += ["--tasks", ",".join(NAMES), "--include_path", str(TASKS)]
    command += ["--batch_size", "8", "--output_path", str(tmp_path / "out")]
    environment = {**os.environ, "GPTQMODEL_CPU_WORKERS": "2"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=400)
    assert done.returncode == 0, done.stderr[-2000:]
    (report,) = (tmp_path / "out").rglob("results_*.json")
    theirs = json.loads(report.read_text())["results"]
    for score in evaluate_tasks(quantized.model, NAMES, TASKS):
        # In 16 bits, a choice between two that are nearly as likely may fall otherwise.
        found = theirs[score.task][f"{score.metric},none"]
        assert abs(found - score.value) <= 2.5 / COUNT, (score.task, score.metric)
