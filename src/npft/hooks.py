"""The four hooks by which a package adds plugins, and the marker that implements them.

Hooks, contracts, and what these take and give are npft's API, which has a version of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import pluggy

from npft.contracts import Objective, Quantizer, Sampler, Scorer

GROUP = "npft"
"""The group of entry points that lead to a package's hooks."""

API_GROUP = "npft.api"
"""The group in which a package names the version of the API that it was written for."""

API_VERSION = (1, 0)
"""Major and minor version: a new major one breaks plugins, a new minor one adds to the API."""

hookspec = pluggy.HookspecMarker(GROUP)
hookimpl = pluggy.HookimplMarker(GROUP)


class Hooks:
    """The four hooks; each returns the classes that a package adds."""

    @hookspec
    def npft_scorers(self) -> Sequence[type[Scorer]]:
        """Sensitivity scorers."""
        return ()

    @hookspec
    def npft_samplers(self) -> Sequence[type[Sampler]]:
        """Noise samplers."""
        return ()

    @hookspec
    def npft_objectives(self) -> Sequence[type[Objective]]:
        """Tuning objectives."""
        return ()

    @hookspec
    def npft_quantizers(self) -> Sequence[type[Quantizer]]:
        """Quantizer backends."""
        return ()
