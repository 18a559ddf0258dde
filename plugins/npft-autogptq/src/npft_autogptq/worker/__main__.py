"""The worker: quantizes one job folder with AutoGPTQ, in AutoGPTQ's own environment.

    python worker FOLDER            quantize; one JSON object per line on standard output
    python worker --about TYPE      say what is installed, and whether it knows a model type

The folder holds ``job.json`` (the settings, and the names of the layers), ``model/`` (a float
Hugging Face folder in the old words), ``tokens.safetensors`` (the calibration, batch by batch) and
``probe.safetensors`` (the predictions that the model must make here too). Layer number I goes to
``out/I.safetensors``. Messages are ``{"layer": I}``, ``{"note": TEXT}``, ``{"refusal": TEXT}`` and
at the end ``{"done": true}``.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
from pathlib import Path
from typing import Any


def main() -> int:
    """Run one job, or answer about this environment."""
    # Libraries print; the protocol keeps the real standard output for itself.
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(message: dict[str, Any]) -> None:
        channel.write(json.dumps(message) + "\n")
        channel.flush()

    if sys.argv[1] == "--about":
        say(about(sys.argv[2]))
        return 0
    # Only now, so that a question about versions is answered even where these fail.
    from job import run
    from refusal import Refusal

    try:
        run(Path(sys.argv[1]), say)
    except Refusal as refusal:
        say({"refusal": str(refusal)})
        return 0
    say({"done": True})
    return 0


def about(model_type: str) -> dict[str, Any]:
    """Versions of what decides, and whether transformers knows a model type."""
    import auto_gptq  # noqa: F401  (it must import, not merely be there)
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    packages = ("auto-gptq", "transformers", "peft", "torch")
    versions = {name: importlib.metadata.version(name) for name in packages}
    return {"versions": versions, "knows": model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES}


if __name__ == "__main__":
    sys.exit(main())
