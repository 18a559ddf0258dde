"""Discovery and the catalog: real packages on the path, and the mistakes they can make."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import ClassVar, Literal

import pytest
from packages import GOOD, Install
from pydantic import Field, field_validator, model_validator
from refusals import refusal

from npft.contracts import KINDS
from npft.errors import NpftError
from npft.plugins import Catalog, Entry, build, discover
from npft.samplers import StepUniform

# What is found


BUILT_IN = {
    "scorer": {"fisher", "magnitude"},
    "sampler": {"channel-uniform", "step-uniform", "residual"},
    "objective": {"cross-entropy", "kl"},
    "quantizer": {"rtn", "kmeans"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_built_ins_are_in_the_catalog(kind: str) -> None:
    catalog = discover()
    own = {entry.name for entry in catalog if entry.kind == kind and entry.package == "npft"}
    assert own >= BUILT_IN[kind]
    assert set(catalog.names(kind)) >= own
    for name in own:
        entry = catalog.find(kind, name)
        assert issubclass(entry.cls, KINDS[kind])
        assert entry.version == metadata.version("npft")
        assert type(catalog.build(kind, name)) is entry.cls


def test_an_installed_package_is_found(install: Install) -> None:
    install("npft-mine", GOOD)
    catalog = discover()
    entry = catalog.find("sampler", "mine")
    assert (entry.package, entry.version) == ("npft-mine", "1.2")
    assert catalog.build("sampler", "mine", {"scale": "0.5"}).scale == 0.5


def test_packages_may_call_their_entry_points_alike(install: Install) -> None:
    for word in ("one", "two", "scorers"):
        install(f"npft-{word}", GOOD.replace('"mine"', f'"{word}"'), "samplers = {module}")
    names = {entry.name: entry.package for entry in discover()}
    assert {word: f"npft-{word}" for word in ("one", "two", "scorers")}.items() <= names.items()


def test_two_entry_points_may_lead_to_one_module(install: Install) -> None:
    install("npft-mine", GOOD, "one = {module}\ntwo = {module}")
    assert discover().names("sampler").count("mine") == 1


def test_an_entry_point_of_another_group_is_left_alone(install: Install) -> None:
    install("npft-mine", "raise RuntimeError('imported')", "[other]\na = {module}")
    discover()


# Mistakes of packages


def test_a_repeated_name_names_both_packages(install: Install) -> None:
    install("npft-one", GOOD)
    install("npft-two", GOOD)
    refusal(discover, "sampler 'mine'", "npft-one", "npft-two", "uninstall one of them")


def test_a_built_in_name_cannot_be_taken(install: Install) -> None:
    install("npft-twice", GOOD.replace('"mine"', '"step-uniform"'))
    refusal(discover, "'step-uniform'", ": npft and npft-twice")


@pytest.mark.parametrize(
    ("code", "parts"),
    [
        ("def helper():\n    raise KeyError('flux')\nhelper()", ["KeyError: 'flux'", "in helper"]),
        ("import nonesuch_module", ["fails to import", "No module named 'nonesuch_module'"]),
        ("def broken(:", ["fails to import", "SyntaxError"]),
        ("import sys\nsys.exit(3)", ["fails to import", "SystemExit: 3"]),
        (GOOD.replace("[Mine]", "[Mine, 1 / 0]"), ["fails in npft_samplers", "ZeroDivisionError"]),
    ],
)
def test_a_package_that_fails_is_reported_with_its_own_traceback(
    code: str, parts: list[str], install: Install
) -> None:
    install("npft-broken", code)
    with pytest.raises(NpftError) as caught:
        discover()
    summary, *trace = str(caught.value).split("\n")
    assert "the plugin package npft-broken fails" in summary
    assert trace[0] == "Traceback (most recent call last):"
    assert all(part in str(caught.value) for part in parts)


def test_an_entry_point_to_nothing_is_reported(install: Install) -> None:
    install("npft-broken", GOOD, "plugin = {module}:nonesuch")
    with pytest.raises(NpftError, match="npft-broken fails to import .*:nonesuch"):
        discover()


@pytest.mark.parametrize(
    ("good", "bad", "parts"),
    [
        ("def npft_samplers", "def npft_sampler", ["'npft_sampler'", "mean 'npft_samplers'"]),
        ("def npft_samplers", "def samplers", ["'samplers'", "mean 'npft_samplers'"]),
        ("@hookimpl\ndef npft_samplers", "def npft_smaplers", ["mean 'npft_samplers'"]),
        ("@hookimpl", "", ["'npft_samplers' without the mark", "hookimpl"]),
        ("npft_samplers()", "npft_samplers(config)", ["takes arguments"]),
        (GOOD, "", ["implements no hook", "npft_samplers"]),
    ],
)
def test_a_hook_that_would_be_passed_over_is_refused(
    good: str, bad: str, parts: list[str], install: Install
) -> None:
    install("npft-typo", GOOD.replace(good, bad))
    refusal(discover, "npft-typo", *parts)


@pytest.mark.parametrize(
    ("returned", "part"),
    [
        ("[int]", "subclasses of npft.contracts.Sampler"),
        ("[Mine(scale=2)]", "subclasses of npft.contracts.Sampler"),
        ("['mine']", "subclasses of npft.contracts.Sampler"),
        ("[__import__('npft.scorers').scorers.Fisher]", "npft.contracts.Sampler"),
        ("Mine", "a list of classes"),
        ("None", "a list of classes"),
        ("[__import__('npft.contracts').contracts.Sampler]", "does not implement sample"),
    ],
)
def test_something_that_is_no_plugin_is_refused(returned: str, part: str, install: Install) -> None:
    install("npft-odd", GOOD.replace("[Mine]", returned))
    refusal(discover, "npft-odd", "npft_samplers", part)


@pytest.mark.parametrize("name", ["'My Sampler'", "'a.b'", "'a=b'", "''", "'-a'", "None", "3"])
def test_a_name_that_is_no_word_is_refused(name: str, install: Install) -> None:
    install("npft-odd", GOOD.replace('name: ClassVar[str] = "mine"', f"name: ClassVar = {name}"))
    refusal(discover, "npft-odd", "name is", "small letters")


def test_a_broken_package_ends_the_command_line_with_status_1(
    install: Install, tmp_path: Path
) -> None:
    install("npft-broken", "raise RuntimeError('flux')\n")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); sys.argv = ['npft', 'plugins']\n"
    done = subprocess.run(
        [sys.executable, "-c", code + "from npft.cli import main; main()"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("npft: error: the plugin package npft-broken")


# Names and options


@pytest.mark.parametrize(
    ("kind", "name", "parts"),
    [
        ("scorer", "fischer", ["did you mean 'fisher'?", "fisher, magnitude"]),
        ("quantizer", "k-means", ["did you mean 'kmeans'?", "kmeans", "rtn"]),
        ("objective", "fisher", ["cross-entropy, kl"]),
    ],
)
def test_an_unknown_name_lists_what_there_is(kind: str, name: str, parts: list[str]) -> None:
    refusal(lambda: discover().find(kind, name), f"no {kind} {name!r}", *parts)


class Rich(StepUniform):
    """Every form that an option can take."""

    name: ClassVar[str] = "rich"

    axis: Literal["output", "input"] = Field("output", description="what a channel is")
    steps: int = Field(ge=1, lt=9)
    share: float | None = None
    names: list[str] = Field(default_factory=lambda: ["a"], description="which")

    @field_validator("names")
    @classmethod
    def _short(cls, names: list[str]) -> list[str]:
        if len(names) > 2:
            raise ValueError("At most two names fit")
        return names

    @model_validator(mode="after")
    def _together(self) -> Rich:
        if self.steps == 8 and self.axis == "input":
            raise ValueError("8 steps do not go along inputs")
        return self


def test_options_tell_type_bounds_default_and_description() -> None:
    assert Entry("sampler", "rich", Rich, "p", "1").options() == {
        "scale": "float (> 0), default 1.0: factor on the range",
        "axis": "output|input, default output: what a channel is",
        "steps": "int (>= 1, < 9)",
        "share": "float | None, default None",
        "names": "list[str], default ['a']: which",
    }


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"scal": 1}, ["has no option 'scal'", "did you mean 'scale'?"]),
        ({"zzz": 1}, ["has no option 'zzz'"]),
        ({"steps": "many"}, ["steps='many'", "valid integer"]),
        ({"steps": 2.5}, ["steps=2.5", "integer"]),
        ({"steps": 0}, ["steps=0", "greater than or equal to 1"]),
        ({"scale": -1.0}, ["scale=-1.0", "greater than 0"]),
        ({"axis": "row"}, ["axis='row'", "'output' or 'input'"]),
        ({"names": ["a", "b", "c"]}, ["names=['a', 'b', 'c']", "at most two names fit"]),
        ({"steps": 8, "axis": "input"}, ["8 steps do not go along inputs"]),
        ({"steps": None}, ["steps=None", "integer"]),
    ],
)
def test_a_wrong_option_says_which_options_there_are(
    options: dict[str, object], parts: list[str]
) -> None:
    catalog = Catalog([Entry("sampler", "rich", Rich, "p", "1")])
    sentence = refusal(
        lambda: catalog.build("sampler", "rich", {"steps": 3, **options}), "sampler 'rich'", *parts
    )
    assert sentence.endswith("its options are scale, axis, steps, share, names")


def test_an_option_without_default_must_be_given() -> None:
    refusal(lambda: build(Rich, "sampler 'rich'", {}), "sampler 'rich' needs option 'steps'")


def test_several_mistakes_are_all_told() -> None:
    refusal(lambda: build(Rich, "it", {"steps": 0, "axis": "row"}), "steps=0", "axis='row'", "; ")


def test_a_plugin_without_options_says_so() -> None:
    refusal(lambda: discover().build("objective", "kl", {"beta": 1}), "no option 'beta'", "none")


def test_options_are_read_from_words_and_then_frozen() -> None:
    made = build(Rich, "it", {"steps": "3", "scale": "2"})
    assert (made.steps, made.scale, made.axis) == (3, 2.0, "output")
    with pytest.raises(ValueError, match="frozen"):
        made.steps = 4
