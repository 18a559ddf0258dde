"""The API version that a package declares, before anything of it is imported."""

from __future__ import annotations

import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packages import GOOD, Install
from refusals import refusal

from npft import hooks
from npft.plugins import api, discover

PLUGINS = Path(__file__).parents[2] / "plugins"
NOT_EVEN_IMPORTED = "raise RuntimeError('imported')"


def test_an_entry_tells_the_version(install: Install) -> None:
    install("npft-mine", GOOD)
    catalog = discover()
    assert catalog.find("sampler", "mine").api == "1.0"
    assert catalog.find("sampler", "residual").api == api.CURRENT


@pytest.mark.parametrize(
    ("ours", "declared"),
    [((1, 0), "1.0"), ((1, 3), "1.0"), ((1, 3), "1.3"), ((2, 0), "2.0"), ((12, 10), "12.9")],
)
def test_the_same_major_and_no_later_minor_is_served(
    ours: tuple[int, int], declared: str, install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "API_VERSION", ours)
    install("npft-mine", GOOD, api=f"{declared} = {{module}}")
    assert api.of(metadata.distribution("npft-mine")) == declared


@pytest.mark.parametrize(
    ("ours", "declared", "parts"),
    [
        ((1, 0), "0.9", ["too old", "a newer npft-mine or an older npft"]),
        ((2, 1), "1.4", ["too old", "a newer npft-mine or an older npft"]),
        ((10, 0), "9.0", ["too old", "a newer npft-mine or an older npft"]),
        ((1, 0), "1.1", ["too new", "a newer npft or an older npft-mine"]),
        ((1, 0), "2.0", ["too new", "a newer npft or an older npft-mine"]),
        ((9, 0), "10.0", ["too new", "a newer npft or an older npft-mine"]),
    ],
)
def test_another_version_is_refused(
    ours: tuple[int, int],
    declared: str,
    parts: list[str],
    install: Install,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(api, "API_VERSION", ours)
    monkeypatch.setattr(api, "CURRENT", ".".join(map(str, ours)))
    install("npft-mine", NOT_EVEN_IMPORTED, api=f"{declared} = {{module}}")
    refusal(
        lambda: api.of(metadata.distribution("npft-mine")),
        f"npft-mine 1.2 was written for npft API {declared}",
        f"has {api.CURRENT}:",
        *parts,
    )


def test_it_is_refused_before_the_import(install: Install) -> None:
    install("npft-mine", NOT_EVEN_IMPORTED, api="99.0 = {module}")
    refusal(discover, "npft-mine 1.2 was written for npft API 99.0", "too new")


def test_none_is_refused_with_the_lines_to_add(install: Install) -> None:
    install("npft-mine", NOT_EVEN_IMPORTED, api="")
    refusal(
        discover,
        "npft-mine does not say which npft API",
        '"1.0" = "npft_mine"',
        '[project.entry-points."npft.api"]',
        "install it again",
    )


@pytest.mark.parametrize("declared", ["1", "1.0.0", "v1.0", "one", "1.x", "-1.0", "1.²"])
def test_what_is_no_version_is_refused(declared: str, install: Install) -> None:
    install("npft-mine", NOT_EVEN_IMPORTED, api=f"{declared} = {{module}}")
    refusal(discover, f"npft-mine declares the npft API {declared!r}", "MAJOR.MINOR")


def test_two_versions_are_refused(install: Install) -> None:
    install("npft-mine", NOT_EVEN_IMPORTED, api="1.0 = {module}\n2.0 = {module}")
    refusal(discover, "npft-mine declares the npft API '1.0, 2.0'", "one version")


@pytest.mark.parametrize("folder", sorted(PLUGINS.iterdir()), ids=lambda folder: folder.name)
def test_our_own_packages_are_of_today(folder: Path) -> None:
    points = tomllib.loads((folder / "pyproject.toml").read_text())["project"]["entry-points"]
    assert points[hooks.API_GROUP] == {api.CURRENT: folder.name.replace("-", "_")}
    assert list(points[hooks.GROUP].values()) == [folder.name.replace("-", "_")]
