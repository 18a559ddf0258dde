"""The exceptions that users are meant to see."""

from __future__ import annotations


class NpftError(Exception):
    """A mistake in the input or the environment, told in one sentence.

    The sentence says what was asked, what is wrong with it, and what to do. The command line
    prints it without a traceback and exits with status 1. Names of files and the like may have
    control characters, which a terminal would obey: they are shown as escapes.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(printable(str(message)))


class Unavailable(NpftError):
    """A combination that a quantizer cannot do, on this model or in this environment.

    The sentence gives the reason and what to do. A run lists the combination with it and goes on
    with the rest; where nothing is left, it is an error like any other.
    """


class NotFinite(NpftError):
    """A number that became NaN or infinite while tuning: the run stops, or leaves out the step."""


def printable(text: str) -> str:
    """Text that no terminal obeys: control characters but line ends and tabs become escapes."""
    if text.isprintable():
        return text
    return "".join(
        character
        if character.isprintable() or character in "\n\t"
        else character.encode("unicode_escape").decode()
        for character in text
    )


def abridged(text: str, most: int = 80) -> str:
    """The text, or its beginning where it is longer than ``most`` characters."""
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"


def in_one_line(error: BaseException, most: int = 200) -> str:
    """What another library's exception says, on one line, for use inside a sentence of ours."""
    said = error.strerror if isinstance(error, OSError) else None
    text = " ".join((said or str(error)).split()).rstrip(".:") or type(error).__name__
    if isinstance(error, KeyError):
        text = f"nothing is known as {text}"
    return abridged(text, most)
