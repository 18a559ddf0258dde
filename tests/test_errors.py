"""What users see of an error."""

from __future__ import annotations

import pickle

import pytest

from npft.errors import NpftError, abridged, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain words, é🦙", "plain words, é🦙"),
        ("two\nlines\tand a tab", "two\nlines\tand a tab"),
        ("\x1b[31mred\x07", r"\x1b[31mred\x07"),
        ("right\u202eleft", r"right\u202eleft"),
        ("half\udcff", r"half\udcff"),
    ],
)
def test_no_terminal_obeys_what_is_shown(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert str(NpftError(text)) == shown
    assert str(pickle.loads(pickle.dumps(NpftError(text)))) == shown
    shown.encode("utf-8")


def test_what_is_long_is_cut() -> None:
    assert abridged("a" * 80) == "a" * 80
    assert abridged("a" * 81) == "a" * 79 + "…"
