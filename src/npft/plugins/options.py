"""Options of plugins: fields of their classes, described for listings and filled from words."""

from __future__ import annotations

import difflib
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from npft.errors import NpftError, abridged


def build(cls: type[Any], what: str, options: dict[str, Any]) -> Any:
    """Validate ``options`` into ``cls``, telling mistakes in one sentence."""
    try:
        return cls(**options)
    except ValidationError as error:
        problems = [_problem(cls, what, detail) for detail in error.errors()]
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise NpftError("; ".join(problems[:3]) + more) from error


def describe(field: FieldInfo) -> str:
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
