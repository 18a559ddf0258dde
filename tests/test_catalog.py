"""Discovery and the catalog: real packages on the path, and the mistakes they can make."""

import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import pytest
from refusals import refusal

from npft.plugins import Catalog, Entry, build, discover
from npft.samplers.step_uniform import StepUniform

GOOD = """
from typing import ClassVar
from npft.hooks import hookimpl
from npft.samplers import StepUniform

class Mine(StepUniform):
    name: ClassVar[str] = "mine"

@hookimpl
def npft_samplers():
    return [Mine]
"""


def package(place: Path, name: str, code: str) -> None:
    """A distribution as pip leaves it: a module, and metadata with an entry point."""
    module = name.replace("-", "_")
    (place / f"{module}.py").write_text(code)
    info = place / f"{module}-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(f"[npft]\n{name} = {module}\n")


@pytest.fixture
def site(tmp_path, monkeypatch) -> Path:
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_built_ins() -> None:
    catalog = discover()
    assert catalog.names("scorer") == ["fisher", "magnitude"]
    assert {"channel-uniform", "step-uniform"} <= set(catalog.names("sampler"))
    assert {"cross-entropy", "kl"} <= set(catalog.names("objective"))
    assert {"kmeans", "rtn"} <= set(catalog.names("quantizer"))


def test_an_installed_package_is_found(site) -> None:
    package(site, "npft-mine", GOOD)
    entry = discover().find("sampler", "mine")
    assert (entry.package, entry.version) == ("npft-mine", "1.2")


def test_a_repeated_name_names_both_packages(site) -> None:
    package(site, "npft-twice", GOOD.replace('"mine"', '"step-uniform"'))
    refusal(discover, "npft-twice", "npft and", "'step-uniform'", "uninstall")


def test_a_package_that_fails_to_import_is_reported_with_its_traceback(site) -> None:
    package(site, "npft-broken", "def helper():\n    raise KeyError('flux')\nhelper()\n")
    from npft.errors import NpftError

    with pytest.raises(NpftError) as caught:
        discover()
    for part in ("npft-broken", "fails to import", "KeyError: 'flux'", "in helper"):
        assert part in str(caught.value)


def test_a_misspelt_hook_is_refused(site) -> None:
    package(site, "npft-typo", GOOD.replace("def npft_samplers", "def npft_sampler"))
    refusal(discover, "npft-typo", "'npft_sampler'", "'npft_samplers'")


@pytest.mark.parametrize("returned", ["[int]", "[Mine(scale=2)]", "['mine']"])
def test_something_that_is_no_plugin_is_refused(site, returned) -> None:
    package(site, "npft-odd", GOOD.replace("[Mine]", returned))
    refusal(discover, "npft-odd", "npft_samplers")


@pytest.mark.parametrize(
    ("name", "parts"),
    [("fischer", ["did you mean 'fisher'", "magnitude"]), ("zzz", ["fisher, magnitude"])],
)
def test_an_unknown_name_lists_what_there_is(name, parts) -> None:
    refusal(lambda: discover().find("scorer", name), name, *parts)


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"scal": 1}, ["no option 'scal'", "did you mean 'scale'"]),
        ({"scale": "wide"}, ["scale='wide'"]),
        ({"scale": -1.0}, ["scale=-1.0", "greater than 0"]),
    ],
)
def test_wrong_options_are_named(options, parts) -> None:
    refusal(lambda: build(StepUniform, "sampler 'step-uniform'", options), *parts)


def test_options_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        StepUniform().scale = 2.0  # type: ignore[misc]


def test_every_entry_describes_its_options() -> None:
    class Plain(StepUniform):
        name: ClassVar[str] = "plain"

    entry = Entry("sampler", "plain", Plain, "p", "1")
    assert "scale" in entry.options()
    assert "1.0" in entry.options()["scale"]
    assert [e.name for e in Catalog([entry])] == ["plain"]


def test_a_broken_package_ends_the_command_line_with_status_1(site) -> None:
    package(site, "npft-broken", "raise RuntimeError('flux')\n")
    result = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(site)!r});"
         "sys.argv = ['npft', 'plugins']; from npft.cli import main; main()"],
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert result.returncode == 1
    assert result.stderr.startswith("npft: error: the plugin package npft-broken")
