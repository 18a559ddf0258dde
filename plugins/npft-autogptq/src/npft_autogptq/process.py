"""Run the worker, and hear what it says."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from npft.errors import NpftError, Unavailable
from npft_autogptq.environment import WORKER, clean_variables


def messages(python: Path, folder: Path) -> Iterator[dict[str, Any]]:
    """Run the worker on a job folder; its messages while it works, without the closing ones.

    The worker ends with this iterator, however that ends.

    Raises:
        Unavailable: the worker refuses the model, in its own sentence.
        NpftError: the worker stopped before it was done.
    """
    log = folder / "log.txt"
    variables = {**clean_variables(), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = False
    with log.open("w", encoding="utf-8") as errors:
        worker = subprocess.Popen(
            [str(python), str(WORKER), str(folder)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            encoding="utf-8",
            env=variables,
        )
        try:
            assert worker.stdout is not None
            for line in worker.stdout:
                message = json.loads(line)
                if "refusal" in message:
                    raise Unavailable(message["refusal"])
                done = done or "done" in message
                if not done:
                    yield message
            worker.wait()
        finally:
            worker.kill()
            worker.wait()
            worker.stdout.close()
    if worker.returncode or not done:
        raise _stopped(worker.returncode, log.read_text(encoding="utf-8", errors="replace"))


def _stopped(status: int, log: str) -> NpftError:
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    if status < 0:
        why = f"killed by signal {-status}, as happens where memory runs out"
    else:
        why = lines[-1][:200] if lines else f"exit status {status}"
    error = NpftError(
        f"autogptq's worker stopped before it was done ({why}): quantize with a smaller model or "
        "fewer --samples if memory ran out, else with gptq"
    )
    error.add_note("\n".join(["the end of the worker's log:", *lines[-100:]]))
    return error
