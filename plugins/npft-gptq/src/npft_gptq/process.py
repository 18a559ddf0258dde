"""Run the worker, and hear what it says."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from npft.errors import NpftError, Unavailable

WORKER = Path(__file__).with_name("worker")


def messages(folder: Path) -> Iterator[dict[str, Any]]:
    """Run the worker on a job folder; its messages while it works, without the closing ones.

    The worker ends with this iterator, however that ends.

    Raises:
        Unavailable: the worker refuses the model, in its own sentence.
        NpftError: the worker stopped before it was done; its log is kept.
    """
    log = folder / "log.txt"
    done = False
    with log.open("w", encoding="utf-8") as errors:
        worker = subprocess.Popen(
            [sys.executable, str(WORKER), str(folder)],
            cwd=folder,  # GPTQModel writes logs to where it runs.
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            encoding="utf-8",
            env=_variables(),
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
        raise _stopped(worker.returncode, log)


def _variables() -> dict[str, str]:
    """The user's environment, offline, with as many threads in GPTQModel's pool as it needs.

    It takes half of the cores, and then fails where that is one, as its loader asks for two.
    """
    workers = os.environ.get("GPTQMODEL_CPU_WORKERS", "")
    if not workers.isdecimal():
        workers = str(min(12, (os.cpu_count() or 1) // 2))
    return {
        **os.environ,
        "GPTQMODEL_CPU_WORKERS": str(max(2, int(workers))),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def _stopped(status: int, log: Path) -> NpftError:
    text = log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if status < 0:
        why = f"killed by signal {-status}, as happens where memory runs out"
    else:
        why = lines[-1][:200] if lines else f"exit status {status}"
    handle, kept = tempfile.mkstemp(prefix="npft-gptq-", suffix=".log")
    os.close(handle)
    shutil.copyfile(log, kept)
    return NpftError(
        f"GPTQModel stopped before it was done ({why}): see its log {kept}, and try with fewer "
        "--samples or a smaller model if memory ran out"
    )
