"""Pages from templates: everything but our own drawings is escaped."""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from npft.artifacts import Row


@dataclass(frozen=True)
class Number:
    """A number as it is shown, and where it comes from."""

    value: float
    shown: str
    source: str

    @classmethod
    def of(cls, found: tuple[Row, str] | None, form: str, run: str = "") -> Number | None:
        """A row's value, in a format; None where there is no such row."""
        if found is None:
            return None
        row, source = found
        shown = format(row.value, form) if abs(row.value) < 1e4 else f"{row.value:.3g}"
        return cls(row.value, shown, f"{run} {source}" if run else source)


def fill(template: str, **values: Any) -> str:
    """A page from a template of this package."""
    pages = Environment(
        loader=PackageLoader("npft.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return pages.get_template(template).render(version=version("npft"), **values)


def finite(values: Any) -> Any:
    """The same with None for what JSON has no word for: infinities and NaN."""
    if isinstance(values, dict):
        return {name: finite(value) for name, value in values.items()}
    if isinstance(values, list):
        return [finite(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values
