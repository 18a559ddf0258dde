"""The four hooks by which a package adds plugins, and the marker that implements them."""

from __future__ import annotations

from collections.abc import Sequence

import pluggy

from npft.contracts import Objective, Quantizer, Sampler, Scorer

GROUP = "npft"
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
