"""Which version of npft's API a package was written for.

A package says so in its metadata, ``[project.entry-points."npft.api"]`` with the version as the
name, so that it is known before anything of the package is imported: a plugin for another API
often fails to import.
"""

from __future__ import annotations

import re
from importlib import metadata

from npft.errors import NpftError
from npft.hooks import API_GROUP, API_VERSION, GROUP

CURRENT = ".".join(map(str, API_VERSION))


def of(package: metadata.Distribution) -> str:
    """The version that a package declares, such as ``"1.0"``, which this npft can serve.

    It can where the major version is the same and the minor one not above ours.

    Raises:
        NpftError: it declares none or several, or another than this npft can serve.
    """
    points = package.entry_points
    declared = sorted({point.name for point in points if point.group == API_GROUP})
    if not declared:
        module = next(point.value for point in points if point.group == GROUP)
        raise NpftError(
            f"the plugin package {package.name} does not say which npft API it was written for: "
            f'add "{CURRENT}" = "{module}" to [project.entry-points."{API_GROUP}"] of its '
            "pyproject.toml and install it again"
        )
    version = re.fullmatch(r"(\d{1,6})\.(\d{1,6})", ", ".join(declared), re.ASCII)
    if version is None:
        raise NpftError(
            f"the plugin package {package.name} declares the npft API {', '.join(declared)!r}: it "
            f"must be one version MAJOR.MINOR, such as {CURRENT}"
        )
    _serve(package, (int(version[1]), int(version[2])))
    return declared[0]


def _serve(package: metadata.Distribution, wanted: tuple[int, int]) -> None:
    if wanted[0] == API_VERSION[0] and wanted <= API_VERSION:
        return
    name = package.name
    what = f"the plugin package {name} {package.version} was written for npft API {wanted[0]}."
    ours = f"npft {metadata.version('npft')} has {CURRENT}"
    if wanted < API_VERSION:
        raise NpftError(
            f"{what}{wanted[1]}, which is too old, as {ours}: install a newer {name} or an older "
            "npft"
        )
    raise NpftError(
        f"{what}{wanted[1]}, which is too new, as {ours}: install a newer npft or an older {name}"
    )
