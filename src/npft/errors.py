"""The exceptions that users are meant to see."""

from __future__ import annotations


class NpftError(Exception):
    """A mistake in the input or the environment, told in one sentence.

    The sentence says what was asked, what is wrong with it, and what to do. The command line
    prints it without a traceback and exits with status 1.
    """


class Unavailable(NpftError):
    """A combination that a quantizer cannot do, on this model or in this environment.

    The sentence gives the reason and what to do. A run lists the combination with it and goes on
    with the rest; where nothing is left, it is an error like any other.
    """


class NotFinite(NpftError):
    """A number that became NaN or infinite while tuning: the run stops, or leaves out the step."""


def in_one_line(error: BaseException, most: int = 200) -> str:
    """What another library's exception says, on one line, for use inside a sentence of ours."""
    said = error.strerror if isinstance(error, OSError) else None
    text = " ".join((said or str(error)).split()).rstrip(".:") or type(error).__name__
    if isinstance(error, KeyError):
        text = f"nothing is known as {text}"
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"
