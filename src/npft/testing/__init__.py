"""Contract checks for plugins, the built-in ones and yours alike.

Each takes a configured instance and raises AssertionError, saying which promise is broken::

    from npft.testing import check_sampler

    def test_contract():
        check_sampler(MySampler(scale=0.5))

They run on random models of a few thousand weights, in a few seconds at most: on the CPU, and
where there is CUDA on that as well.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from npft.contracts import KINDS, Plugin
from npft.testing.models import small_models
from npft.testing.objective import check_objective
from npft.testing.quantizer import check_quantizer
from npft.testing.sampler import check_sampler
from npft.testing.scorer import check_scorer

__all__ = [
    "check_objective",
    "check_plugin",
    "check_quantizer",
    "check_sampler",
    "check_scorer",
    "small_models",
]

_CHECKS: dict[str, Callable[[Any], None]] = {
    "scorer": check_scorer,
    "sampler": check_sampler,
    "objective": check_objective,
    "quantizer": check_quantizer,
}


def check_plugin(plugin: Plugin) -> None:
    """Check a plugin of any kind against the contract of its kind.

    Raises:
        AssertionError: it is of no kind, or breaks a promise.
    """
    kinds = [kind for kind, contract in KINDS.items() if isinstance(plugin, contract)]
    if not kinds:
        raise AssertionError(f"{type(plugin).__name__} is no {', '.join(KINDS)}")
    for kind in kinds:
        _CHECKS[kind](plugin)
