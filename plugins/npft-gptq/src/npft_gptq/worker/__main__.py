"""The worker: quantizes one job folder with GPTQModel.

    python worker FOLDER            one JSON object per line on standard output

The folder holds ``job.json`` (the settings, and the names of the layers), ``model/`` (a float
Hugging Face folder), ``tokens.safetensors`` (the calibration, batch by batch) and
``probe.safetensors`` (the predictions that the model must make here too). Layer number I goes to
``out/I.safetensors``. Messages are ``{"layer": I}``, ``{"note": TEXT}``, ``{"refusal": TEXT}`` and
at the end ``{"done": true}``. Everything that libraries print goes to standard error.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path
from typing import Any


def main() -> int:
    """Run one job."""
    # Libraries print; the protocol keeps the real standard output for itself.
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    lock = threading.Lock()

    def say(message: dict[str, Any]) -> None:
        with lock:
            channel.write(json.dumps(message) + "\n")
            channel.flush()

    # Only now, as GPTQModel prints when it is imported.
    from job import Refusal, run

    try:
        run(Path(sys.argv[1]), say)
    except Refusal as refusal:
        say({"refusal": str(refusal)})
        return 0
    say({"done": True})
    return 0


if __name__ == "__main__":
    sys.exit(main())
