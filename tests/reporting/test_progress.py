"""What a command is doing stands on a terminal, and nowhere else."""

from __future__ import annotations

import io
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from softmask.cli.main import main
from softmask.reporting.progress import progress


class Screen(io.StringIO):
    """Standard error that is a terminal."""

    def isatty(self) -> bool:
        return True


def terminal(monkeypatch) -> Screen:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    shown = Screen()
    monkeypatch.setattr(sys, "stderr", shown)
    return shown


def test_a_terminal_shows_what_is_done_how_far_it_is_and_then_nothing_of_it(
    monkeypatch,
) -> None:
    screen = terminal(monkeypatch)
    with progress("scoring [all]", total=3, unit="puzzles") as step:
        step.advance(2)
        step.update("scoring the rest", total=4)
        with progress("loading") as inner:
            inner.advance()
        with pytest.raises(KeyError), progress("failing"):
            raise KeyError
    said = screen.getvalue()
    for words in ("scoring the rest", "2/4 puzzles", "loading", "failing"):
        assert words in said
    assert said.rstrip().endswith("\x1b[2K")  # the line is gone


def test_a_pipe_or_a_quiet_command_shows_nothing(monkeypatch) -> None:
    screen = terminal(monkeypatch)
    with progress("scoring", total=3, quiet=True) as step:
        step.advance()
    assert screen.getvalue() == ""
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with progress("scoring", total=3) as step:
        step.advance()
    assert sys.stderr.getvalue() == ""


def test_a_command_speaks_before_it_has_imported_what_it_needs(monkeypatch) -> None:
    screen = terminal(monkeypatch)
    assert main(["export", "x", "--model", "nowhere"]) == 2
    said = screen.getvalue()
    assert said.index("starting") < said.index("exporting to x") < said.index("softmask: error:")


def test_threads_share_the_display_and_the_last_one_takes_it_away(monkeypatch) -> None:
    screen = terminal(monkeypatch)
    begun, end = threading.Event(), threading.Event()

    def work() -> None:
        with progress("the other one") as step:
            begun.set()
            end.wait(60)
            step.advance()

    with ThreadPoolExecutor() as pool:
        with progress("this one"):
            other = pool.submit(work)
            assert begun.wait(60)
        end.set()
        other.result()
    assert "the other one" in screen.getvalue()
    with progress("again"):
        pass
    assert "again" in screen.getvalue()
