"""The catalog of plugins: (kind, name) -> class, and where each came from."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from npft.contracts import Plugin
from npft.errors import NpftError, abridged
from npft.plugins import api
from npft.plugins.options import build, describe


@dataclass(frozen=True)
class Entry:
    """One plugin of the catalog and where it came from.

    Attributes:
        api: the version of npft's API for which its package was written, as ``"1.0"``.
    """

    kind: str
    name: str
    cls: type[Plugin]
    package: str
    version: str
    api: str = api.CURRENT

    def options(self) -> dict[str, str]:
        """Option name to its type, bounds, default and description, for listings."""
        return {name: describe(field) for name, field in self.cls.model_fields.items()}


class Catalog:
    """All installed plugins. Build one with :func:`npft.plugins.discover`."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self._entries: dict[tuple[str, str], Entry] = {}
        for entry in entries:
            other = self._entries.get((entry.kind, entry.name))
            if other is not None:
                raise NpftError(
                    f"two packages provide the {entry.kind} {entry.name!r}: {other.package} and "
                    f"{entry.package}; uninstall one of them"
                )
            self._entries[(entry.kind, entry.name)] = entry

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries.values())

    def names(self, kind: str) -> list[str]:
        """Names of one kind, sorted."""
        return sorted(entry.name for entry in self if entry.kind == kind)

    def find(self, kind: str, name: str) -> Entry:
        """The entry of that kind and name.

        Raises:
            NpftError: there is none; the message lists what exists and the nearest match.
        """
        entry = self._entries.get((kind, name))
        if entry is not None:
            return entry
        known = self.names(kind)
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise NpftError(
            f"there is no {kind} {abridged(repr(name))}: {hint}installed are {', '.join(known)}"
        )

    def build(self, kind: str, name: str, options: dict[str, Any] | None = None) -> Any:
        """Make the configured plugin.

        Raises:
            NpftError: unknown name, unknown option, or a value that the option does not take.
        """
        entry = self.find(kind, name)
        return build(entry.cls, f"{kind} {name!r}", options or {})
