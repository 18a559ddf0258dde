"""Progress: a bar per stage on a terminal, a line per stage elsewhere, nothing when quiet."""

import io

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


def test_quiet_is_quiet(capsys) -> None:
    screen = Screen(quiet=True)
    assert list(screen.track([1], "tune", 1)) == [1]
    screen.note("something")
    printed = capsys.readouterr()
    assert printed.out + printed.err == ""
