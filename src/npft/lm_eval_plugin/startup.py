"""Announces the model type to a harness that does not look at entry points (0.4.13 and before).

Called by ``npft-lm-eval.pth`` at the start of a Python whose command is ``lm_eval``; in any other
Python that file does nothing. It can go once an lm-eval that reads entry points is required.
"""

from __future__ import annotations

from importlib.util import find_spec

NAME = "npft"
TARGET = "npft.lm_eval_plugin.model:RunModel"


def announce() -> None:
    """Add the name to the harness's registry; the class is imported only if it is asked for."""
    if find_spec("lm_eval") is None:
        return
    # The harness lists its own types in here, unless it finds the registry filled already.
    import lm_eval.models  # noqa: F401
    from lm_eval.api.registry import model_registry

    if NAME not in model_registry:
        model_registry.register(NAME, target=TARGET)
