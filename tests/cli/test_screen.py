"""Progress: a bar per stage on a terminal, plain lines elsewhere, nothing when quiet."""

import io
import re

from rich.console import Console

from npft.cli.screen import Screen


def test_a_terminal_shows_a_bar_that_reaches_its_end() -> None:
    screen, shown = Screen(), io.StringIO()
    screen._console = Console(file=shown, force_terminal=True, width=120)
    assert list(screen.track([1, 2, 3], "score", 3)) == [1, 2, 3]
    assert "score" in shown.getvalue()
    assert "3/3" in shown.getvalue()


def test_elsewhere_a_line_tells_what_is_done(capsys) -> None:
    assert list(Screen().track(iter("ab"), "tune", 2)) == ["a", "b"]
    printed = capsys.readouterr()
    assert printed.err.startswith("tune: 2 in ")
    assert printed.out == ""


def test_long_stages_tell_how_much_is_left(capsys) -> None:
    list(Screen(every=0).track("abc", "tune", 3))
    one, two, end = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"tune: 1 of 3, \d+ s left", one)
    assert re.fullmatch(r"tune: 2 of 3, \d+ s left", two)
    assert end.startswith("tune: 3 in ")


def test_quiet_is_quiet(capsys) -> None:
    screen = Screen(quiet=True)
    assert list(screen.track([1], "tune", 1)) == [1]
    screen.note("something")
    printed = capsys.readouterr()
    assert printed.out + printed.err == ""
