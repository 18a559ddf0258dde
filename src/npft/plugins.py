"""Plugin discovery and the catalog: name -> class, per kind.

pluggy finds packages through the entry-point group ``npft``; each returns classes from one or more
of the four hooks. Everything after that is ordinary Python.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any, Literal, get_args, get_origin

import pluggy
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from npft.contracts import KINDS, Plugin
from npft.errors import NpftError, abridged
from npft.hooks import GROUP, Hooks


@dataclass(frozen=True)
class Entry:
    """One plugin of the catalog and where it came from."""

    kind: str
    name: str
    cls: type[Plugin]
    package: str
    version: str

    def options(self) -> dict[str, str]:
        """Option name to its type, bounds, default and description, for listings."""
        return {name: _describe(field) for name, field in self.cls.model_fields.items()}


class Catalog:
    """All installed plugins. Build one with :func:`discover`."""

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


def build(cls: type[Any], what: str, options: dict[str, Any]) -> Any:
    """Validate ``options`` into ``cls``, telling mistakes in one sentence."""
    try:
        return cls(**options)
    except ValidationError as error:
        problems = [_problem(cls, what, detail) for detail in error.errors()]
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise NpftError("; ".join(problems[:3]) + more) from error


def discover() -> Catalog:
    """The catalog of built-in and installed plugins.

    Raises:
        NpftError: a package fails to import or its hook fails (the traceback is in the message),
            implements a hook that does not exist or none at all, returns something that fulfils
            no contract, or repeats a name.
    """
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(Hooks)
    sources: dict[str, _Source] = {}
    for module in ("scorers", "samplers", "objectives", "quantizers"):
        source = _Source("npft", metadata.version("npft"), f"npft.{module}")
        _register(manager, importlib.import_module(source.module), source, sources)
    for point in metadata.entry_points(group=GROUP):
        package, version = (point.dist.name, point.dist.version) if point.dist else ("?", "?")
        source = _Source(package, version, point.value)
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
    """Where plugins come from: a package, its version, and the module of its entry point."""

    package: str
    version: str
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
            f"{returned}, whose name is {name!r}: set `name: ClassVar[str]` to a word of small "
            "letters, digits and hyphens"
        )
    return Entry(kind, name, cls, source.package, source.version)


def _describe(field: FieldInfo) -> str:
    """``type (bounds), default X: description``, each where there is one."""
    annotation = field.annotation
    if get_origin(annotation) is Literal:
        text = "|".join(map(str, get_args(annotation)))
    elif isinstance(annotation, type) and not get_args(annotation):
        text = annotation.__name__
    else:
        text = str(annotation).replace("typing.", "")
    bounds = [
        f"{sign} {getattr(limit, word)}"
        for limit in field.metadata
        for word, sign in (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<"))
        if hasattr(limit, word)
    ]
    if bounds:
        text += f" ({', '.join(bounds)})"
    if not field.is_required():
        text += f", default {field.get_default(call_default_factory=True)}"
    return f"{text}: {field.description}" if field.description else text


def _problem(cls: type[BaseModel], what: str, detail: ErrorDetails) -> str:
    option = abridged(".".join(str(part) for part in detail["loc"]))
    its_options = f"its options are {', '.join(cls.model_fields) or 'none'}"
    if detail["type"] == "extra_forbidden":
        close = difflib.get_close_matches(option, list(cls.model_fields), n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        return f"{what} has no option {option!r}: {hint}{its_options}"
    if detail["type"] == "missing":
        return f"{what} needs option {option!r}: {its_options}"
    message = detail["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    if not option:
        return f"{what} cannot be configured so, {message}: {its_options}"
    return (
        f"{what} cannot have {option}={abridged(repr(detail['input']))}, {message}: {its_options}"
    )
