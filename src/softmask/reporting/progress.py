"""What a command is doing and how far it is: one display on standard error, silent in pipes.

with progress("loading the model"):
    ...
with progress("scoring", total=len(puzzles), unit="puzzles") as step:
    for puzzle in puzzles:
        ...
        step.advance()
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TaskID
from rich.table import Column
from rich.text import Text

# The display that is on, and how many steps it shows. A terminal has room for one: steps within a
# step share it, and so do threads, of which the last one to end takes it away.
_display: Progress | None = None
_steps = 0
_lock = threading.Lock()


class Step:
    """Something that is being done, for whoever does it to report on."""

    def __init__(self, display: Progress, id: TaskID) -> None:
        self._display, self._id = display, id

    def advance(self, count: float = 1) -> None:
        """So much more of the total is done."""
        self._display.advance(self._id, count)

    def update(self, what: str | None = None, total: float | None = None) -> None:
        """Says in other words what is being done, or how much there is in all."""
        if what is not None:
            self._display.update(self._id, description=what)
        if total is not None:
            self._display.update(self._id, total=total)
        self._display.refresh()


@contextmanager
def progress(
    what: str, total: float | None = None, unit: str = "", *, quiet: bool = False
) -> Iterator[Step]:
    """Shows `what` while the block runs, and takes it away after.

    Args:
        what: what is being done, in a few words: "loading the model".
        total: how much there is to do; None: unknown, shown without a bar.
        unit: of what `total` counts, shown behind the numbers.
        quiet: show nothing; nor is anything shown where standard error is no terminal.
    """
    display = _enter(quiet)
    id = display.add_task(what, total=total, unit=unit)
    display.refresh()
    try:
        yield Step(display, id)
    finally:
        _leave(id)


def _enter(quiet: bool) -> Progress:
    """The display that is on; a new one where there is none."""
    global _display, _steps
    with _lock:
        if _display is None:
            console = Console(stderr=True)
            hidden = quiet or not console.is_terminal
            _display = Progress(
                SpinnerColumn(),
                _Words(table_column=Column(no_wrap=True, overflow="ellipsis")),
                _Bar(bar_width=20),
                _Numbers(table_column=Column(no_wrap=True)),
                console=console,
                transient=True,
                disable=hidden,
                redirect_stdout=False,
                redirect_stderr=not hidden,
            )
            _display.start()
        _steps += 1
        return _display


def _leave(id: TaskID) -> None:
    """Takes a step away, and the display with the last one."""
    global _display, _steps
    with _lock:
        assert _display is not None
        _steps -= 1
        if _steps:
            _display.remove_task(id)
        else:  # with its step: rich would erase a line too many of an empty display
            _display.stop()
            _display = None


class _Words(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(task.description)


class _Bar(BarColumn):
    """A bar, where it is known how much there is."""

    def __call__(self, task: Task) -> RenderableType:
        return super().__call__(task) if task.total is not None else Text()


class _Numbers(ProgressColumn):
    """12/96 puzzles  00:07  00:51 left"""

    def render(self, task: Task) -> Text:
        parts = [_clock(task.elapsed or 0)]
        if task.total is not None:
            parts.insert(0, f"{task.completed:.0f}/{task.total:.0f} {task.fields['unit']}".strip())
            if task.time_remaining is not None:
                parts.append(f"{_clock(task.time_remaining)} left")
        return Text("  ".join(parts), style="dim")


def _clock(seconds: float) -> str:
    """Minutes and seconds, with hours in front where there are any."""
    return str(timedelta(seconds=int(seconds))).removeprefix("0:")
