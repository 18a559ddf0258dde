"""Discovery: from installed packages to the catalog."""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import pluggy

from npft.contracts import KINDS
from npft.errors import NpftError
from npft.hooks import GROUP, Hooks
from npft.plugins import api
from npft.plugins.catalog import Catalog, Entry


def discover() -> Catalog:
    """The catalog of built-in and installed plugins.

    Raises:
        NpftError: a package was written for another API or does not say for which, fails to
            import or its hook fails (the traceback is in the message), implements a hook that does
            not exist or none at all, returns something that fulfils no contract, or repeats a name.
    """
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(Hooks)
    sources: dict[str, _Source] = {}
    for module in ("scorers", "samplers", "objectives", "quantizers"):
        source = _Source("npft", metadata.version("npft"), api.CURRENT, f"npft.{module}")
        _register(manager, importlib.import_module(source.module), source, sources)
    for point in metadata.entry_points(group=GROUP):
        package = point.dist
        assert package is not None, "entry points are read from distributions"
        source = _Source(package.name, package.version, api.of(package), point.value)
        _register(manager, _own(source, "fails to import", point.load), source, sources)
    entries: list[Entry] = []
    for kind in KINDS:
        for implementation in getattr(manager.hook, f"npft_{kind}s").get_hookimpls():
            source = sources[implementation.plugin_name]
            classes = _own(source, f"fails in npft_{kind}s", implementation.function)
            if not isinstance(classes, Sequence):
                raise NpftError(
                    f"the plugin package {source.package} returns {classes!r} from npft_{kind}s: "
                    "it must return a list of classes"
                )
            entries.extend(_entry(kind, cls, source) for cls in classes)
    return Catalog(entries)


@dataclass(frozen=True)
class _Source:
    """Where plugins come from: a package, its version and API, and its entry point's module."""

    package: str
    version: str
    api: str
    module: str


def _register(
    manager: pluggy.PluginManager, plugin: object, source: _Source, sources: dict[str, _Source]
) -> None:
    if manager.is_registered(plugin):
        return
    _check_hooks(manager, plugin, source)
    name = f"{source.package}:{source.module}"
    sources[name] = source
    try:
        manager.register(plugin, name=name)
    except pluggy.PluginValidationError as error:
        raise NpftError(
            f"the plugin package {source.package} has a hook that takes arguments: hooks take none"
        ) from error


def _own(source: _Source, fault: str, call: Callable[[], Any]) -> Any:
    """Run code of a package; where that fails, name the package and show its traceback."""
    try:
        return call()
    except (Exception, SystemExit) as error:
        raise NpftError(
            f"the plugin package {source.package} {fault} ({source.module}): repair or uninstall "
            f"it; its own traceback is\n{traceback.format_exc().rstrip()}"
        ) from error


def _check_hooks(manager: pluggy.PluginManager, plugin: object, source: _Source) -> None:
    """Refuse hooks that pluggy would pass over in silence."""
    known = [f"npft_{kind}s" for kind in KINDS]
    found = False
    for attribute in dir(plugin):
        marks = manager.parse_hookimpl_opts(plugin, attribute)
        hook = (marks and marks.get("specname")) or attribute
        looks_like_one = attribute.startswith("npft_") and callable(getattr(plugin, attribute))
        if hook not in known and (marks is not None or looks_like_one):
            close = difflib.get_close_matches(hook, known, n=1, cutoff=0.0)[0]
            raise NpftError(
                f"the plugin package {source.package} implements the hook {hook!r}, which does "
                f"not exist: did it mean {close!r}?"
            )
        if marks is None and looks_like_one:
            raise NpftError(
                f"the plugin package {source.package} defines {hook!r} without the mark "
                "@npft.hooks.hookimpl, so that it is no hook: add the mark"
            )
        found = found or marks is not None
    if not found:
        raise NpftError(
            f"the plugin package {source.package} implements no hook in {source.module}: its "
            f"entry point must lead to one of {', '.join(known)}"
        )


def _entry(kind: str, cls: Any, source: _Source) -> Entry:
    returned = f"the plugin package {source.package} returns {cls!r} from npft_{kind}s"
    contract = KINDS[kind]
    if not (isinstance(cls, type) and issubclass(cls, contract)):
        raise NpftError(
            f"{returned}: it must return subclasses of npft.contracts.{contract.__name__}"
        )
    if inspect.isabstract(cls):
        missing = ", ".join(sorted(cls.__abstractmethods__))
        raise NpftError(f"{returned}, which does not implement {missing}: it must")
    name = getattr(cls, "name", None)
    if not isinstance(name, str) or re.fullmatch(r"[a-z0-9]+([-_][a-z0-9]+)*", name) is None:
        raise NpftError(
            f"{returned}, whose name is {name!r}: set name: ClassVar[str] to a word of small "
            "letters, digits and hyphens"
        )
    return Entry(kind, name, cls, source.package, source.version, source.api)
