"""The studies behind the paper's tables and figures: which runs each is made of.

A case is one ``npft run`` in all but two things: the model is loaded once for all cases, and the
original model is measured once.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

PAPER = "paper"
RELEASED = "released"


@dataclass(frozen=True)
class Case:
    """One tuning, measured through every quantizer.

    Attributes:
        study: which table or figure it is for.
        row: its name there.
        values: what differs from the default configuration, see ``npft.config.RunConfig``.
        seed: the run's seed.
        calibration: the text to tune on, ``c4`` or ``wikitext2``.
        trains: ``tuned``, ``control`` (no noise, cross-entropy), one of ``departures.py``, or
            ``nothing``: the model as it is.
    """

    study: str
    row: str
    values: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    calibration: str = "c4"
    trains: str = "tuned"

    @property
    def name(self) -> str:
        """The name of its folder."""
        words = f"{self.study} {self.row} {self.seed}".lower()
        return "-".join("".join(c if c.isalnum() or c == "." else " " for c in words).split())


ORIGINAL = Case("main", "original", trains="nothing")


def main(opt: bool = False) -> list[Case]:
    """Tables 1 and 2: the recipes against the untuned model and the control."""
    suffix = "-opt" if opt else ""
    return [
        Case("main", "default"),
        Case("main", "control", trains="control"),
        Case("main", "control, lr / 10", {"tuning": {"lr": 5e-5}}, trains="control"),
        Case("main", PAPER, {"recipe": PAPER + suffix}),
        Case("main", RELEASED, {"recipe": RELEASED + suffix}),
    ]


def calibration_size() -> list[Case]:
    """Table 5: how many windows of how many tokens tuning needs."""
    sizes = ((16, 512), (32, 512), (64, 512), (128, 128), (128, 256))
    return [
        Case("calibration size", f"{n} x {length}", {"samples": n, "context": length})
        for n, length in sizes
    ]


def layers() -> list[Case]:
    """Table 6: noise on the attention layers, on the MLP layers, on both."""
    return [Case("layers", which, {"tuning": {"layers": which}}) for which in ("attention", "mlp")]


def noise() -> list[Case]:
    """Table 7: the distribution of the noise, at 4 bits on the top 0.5 % (eq. 6's range)."""
    of = {
        "uniform, step": {"name": "step-uniform"},
        "Gaussian, step": {"name": "step-gaussian"},
        "Laplace, step": {"name": "step-laplace"},
        "uniform, output channel": {"name": "channel-uniform"},
        "Gaussian, output channel": {"name": "channel-gaussian"},
        "Laplace, output channel": {"name": "channel-laplace"},
        "uniform, input channel": {"name": "channel-uniform", "axis": "input"},
    }
    shared = {"gamma": 0.005, "tuning": {"noise_bits": [4]}}
    return [Case("noise", row, {**shared, "sampler": sampler}) for row, sampler in of.items()]


def calibration_text() -> list[Case]:
    """Table 9: the text that tuning sees."""
    return [Case("calibration text", "wikitext2", calibration="wikitext2")]


def gamma() -> list[Case]:
    """Figure 4: the share of the weights that get noise."""
    return [Case("gamma", f"{g:g}", {"gamma": g}) for g in (0.0005, 0.005, 0.02, 0.1, 0.5)]


def clean() -> list[Case]:
    """Figure 5: the loss under noise, with the clean term of eq. 7 and without."""
    both = {"terms": "both", "balance": False}
    return [
        Case("clean term", f"beta {beta:g}", {"tuning": {**both, "beta": beta}})
        for beta in (0.5, 0.0)
    ]


def around() -> list[Case]:
    """The frontier around the default recipe, between rounding and k-means, with norms trained."""
    twice = {"name": "residual", "quantizers": ["rtn", "kmeans", "kmeans"]}
    of: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "norms": ({}, {}),
        "norms, beta 0.25": ({"beta": 0.25}, {}),
        "norms, beta 0.75": ({"beta": 0.75}, {}),
        "norms, beta 1": ({"beta": 1.0}, {}),
        "norms, beta 2": ({"beta": 2.0}, {}),
        "norms, beta 1, k-means twice": ({"beta": 1.0}, twice),
        "norms, beta 1, 4 bits twice": ({"beta": 1.0, "noise_bits": [4, 4, 3]}, {}),
        "norms, k-means twice, 4 bits twice": ({"noise_bits": [4, 4, 3]}, twice),
        "norms, lr 3e-4": ({"lr": 3e-4}, {}),
    }
    return [
        Case("around", row, {"tuning": {"norms": True, **tuning}} | ({"sampler": s} if s else {}))
        for row, (tuning, s) in of.items()
    ]


def variants() -> list[Case]:
    """Departures from the default recipe that are no options of npft."""
    return [Case("variants", "ascent at 4 bits", trains="ascent")]


STUDIES = {
    "main": main,
    "calibration-size": calibration_size,
    "layers": layers,
    "noise": noise,
    "calibration-text": calibration_text,
    "gamma": gamma,
    "clean": clean,
    "variants": variants,
    "around": around,
}
"""By the word of the command line. All but ``main`` compare with its row ``default``."""


def cases(studies: Iterable[str], seeds: int) -> list[Case]:
    """Every case of some studies; those of ``main`` for each seed, the others for seed 0.

    The costly ones come first, so that processes that share them end together.
    """
    found = [ORIGINAL]
    for study in studies:
        for case in STUDIES[study]():
            found += [replace(case, seed=seed) for seed in range(seeds if study == "main" else 1)]
    return sorted(found, key=lambda case: case.trains == "nothing")
