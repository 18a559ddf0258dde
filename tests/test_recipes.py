"""Recipes: which there are, what they hold, and what lies over and under their values."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from refusals import refusal

from npft import config, pipeline, recipes
from npft.cli.options import configure, configure_folder
from npft.objectives import CrossEntropy
from npft.plugins import discover
from npft.samplers import ChannelUniform
from npft.tuning import Tuning

BASE = {"model": "m", "output": "o"}
PUBLISHED = ["paper", "paper-opt", "released", "released-opt"]
published = pytest.mark.parametrize("recipe", PUBLISHED)


def parts(recipe: str) -> pipeline.Plan:
    return pipeline.plan(config.make({**BASE, "recipe": recipe}), discover())


def test_the_folder_is_the_list() -> None:
    files = {file.name for file in resources.files("npft.recipes").iterdir()}
    assert {f"{name}.toml" for name in PUBLISHED} <= files
    assert recipes.names() == ["default", *PUBLISHED]


def test_the_default_recipe_is_the_defaults() -> None:
    assert recipes.read("default") == {}
    assert config.make({**BASE, "recipe": "default"}) == config.make(BASE)


@pytest.mark.parametrize("name", ["papr", "../secret", "", 3])
def test_an_unknown_recipe_lists_what_exists(name: Any) -> None:
    sentence = refusal(
        lambda: config.make({**BASE, "recipe": name}),
        repr(name),
        "default, paper, paper-opt, released, released-opt",
    )
    assert ("did you mean 'paper'" in sentence) == (name == "papr")


@published
def test_published_values(recipe: str) -> None:
    """Section 4.1: gamma, epochs and learning rate by model family, beta = 0.5 in the text."""
    settings, plan = config.make({**BASE, "recipe": recipe}), parts(recipe)
    opt, text = recipe.endswith("opt"), recipe.startswith("paper")
    assert (settings.gamma, settings.scope) == (0.005 if opt else 0.0005, "matrix")
    assert plan.scorer.name == "fisher"
    assert plan.sampler == ChannelUniform(axis="output", span="channel" if text else "outliers")
    assert plan.objective == CrossEntropy(labels="all" if text else "last")
    shared = {
        "epochs": 6 if opt else 3,
        "lr": 5e-6 if opt else 5e-5,
        "rank": 8 if opt else 16,
        "alpha": 32.0,
        "batch_size": 2,
        "warmup": 0.0,
        "terms": "both",
        "balance": False,
        "rescore": True,
    }
    own: dict[str, Any] = (
        {"beta": 0.5, "draw": "step", "restart": False, "dropout": 0.0, "weight_decay": 0.0}
        if text
        else {"beta": 0.0, "draw": "epoch", "restart": True, "dropout": 0.05, "weight_decay": 0.01}
    )
    skip = ("gate_proj",) if recipe == "released" else ()
    assert plan.tuning == Tuning(**shared, **own, adapter_skip=skip)


@published
def test_a_configuration_written_in_full_reads_back_the_same(recipe: str, tmp_path: Path) -> None:
    changed = {**BASE, "recipe": recipe, "gamma": 0.1, "tuning": {"rank": 3}}
    settings = config.make({**changed, "sampler": {"name": "step-uniform"}})
    full = pipeline.in_full(settings, pipeline.plan(settings, discover()))
    assert (full.gamma, full.sampler.name, full.tuning["rank"]) == (0.1, "step-uniform", 3)
    file = tmp_path / "config.toml"
    file.write_text(config.dumps(full, {"torch": "1"}), encoding="utf-8")
    again = config.make(config.read(file))
    assert again == full
    assert again.recipe == recipe
    assert pipeline.plan(again, discover()) == pipeline.plan(settings, discover())


@published
def test_layering_twice_changes_nothing(recipe: str) -> None:
    values = {"recipe": recipe, "tuning": {"rank": 3}, "sampler": {"name": "step-uniform"}}
    once = config.layered({"tuning": {"lr": 1.0, "clip": 2.0}, "samples": 5}, values)
    assert config.layered({}, once) == once
    assert config.layered({"samples": 6}, once) == once
    expected = {**recipes.read(recipe)["tuning"], "clip": 2.0, "rank": 3}
    assert once["tuning"] == expected
    assert (once["samples"], once["sampler"]) == (5, {"name": "step-uniform"})


def test_defaults_recipe_file_flags_options(tmp_path: Path) -> None:
    """Each layer hides the one before in what it says, and only in that."""
    file = tmp_path / "mine.toml"
    mine = {"gamma": 0.02, "tuning": {"rank": 3, "lr": 0.1, "beta": 2.0}, "seed": 7}
    file.write_text(tomli_w.dumps(mine))
    settings = configure(
        {
            "model": "m",
            "config": str(file),
            "recipe": "paper",
            "lr": 0.2,
            "beta": 3.0,
            "options": ("tuning.beta=4.0", "sampler.scale=0.5"),
        }
    )
    assert settings.samples == 128  # default
    assert settings.objective.name == "cross-entropy"  # recipe
    assert (settings.gamma, settings.seed) == (0.02, 7)  # file
    tuning = settings.tuning
    assert tuning["epochs"] == 3  # default and recipe
    assert tuning["balance"] is False  # recipe
    assert (tuning["rank"], tuning["lr"], tuning["beta"]) == (3, 0.2, 4.0)
    assert settings.sampler.name == "channel-uniform"
    assert settings.sampler.options["scale"] == 0.5
    assert settings.sampler.options["span"] == "channel"


def test_another_plugin_replaces_the_recipes_choice_with_its_options() -> None:
    flags = {"model": "m", "recipe": "released", "sampler": "channel-gaussian"}
    assert configure(flags).sampler.model_dump() == {"name": "channel-gaussian"}
    chosen = configure({**flags, "options": ("sampler.axis=input",)}).sampler
    assert chosen.model_dump() == {"name": "channel-gaussian", "axis": "input"}


def test_a_recipe_does_not_change_an_options_quantizers() -> None:
    settings = configure({"model": "m", "recipe": "paper", "options": ("quant.rtn.group_size=64",)})
    default = config.make(BASE)
    assert [choice.name for choice in settings.quant] == [choice.name for choice in default.quant]
    assert settings.quant[0].options == {"group_size": 64}


def test_a_recipe_lies_over_the_demonstration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("npft.cli.options._demonstration", lambda: {"model": "d", **DEMONSTRATION})
    settings = configure({"recipe": "paper", "rank": 4})
    assert (settings.model, settings.samples) == ("d", 16)
    assert settings.sampler.name == "channel-uniform"
    assert (settings.tuning["lr"], settings.tuning["rank"]) == (5e-5, 4)


DEMONSTRATION = {
    "samples": 16,
    "sampler": {"name": "residual", "quantizers": ["rtn"]},
    "tuning": {"lr": 1e-3},
}


def test_a_recipe_under_a_configuration_of_another_is_refused(tmp_path: Path) -> None:
    """Such a configuration says everything itself: the flag would change nothing."""
    settings = config.make({**BASE, "recipe": "paper"})
    full = pipeline.in_full(settings, pipeline.plan(settings, discover()))
    (tmp_path / "config.toml").write_text(config.dumps(full, {}))
    flags = {"config": str(tmp_path / "config.toml"), "output": "o"}
    for call in (
        lambda: configure({**flags, "recipe": "released"}),
        lambda: configure_folder(str(tmp_path), {"recipe": "released"}),
    ):
        refusal(call, "--recipe 'released'", "'paper'")
    assert configure({**flags, "recipe": "paper"}) == full
    assert configure(flags) == full
