"""A command in a terminal of a given size, for scripts that look at what a user sees.

with Terminal(["softmask", "demo"]) as terminal:
    terminal.wait_for("solved")
    terminal.write("\\x03")     # Ctrl-C
    print(terminal.screen())
    terminal.picture(Path("demo.svg"), "softmask demo")
"""

from __future__ import annotations

import codecs
import fcntl
import io
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pyte
from rich.console import Console
from rich.style import Style
from rich.terminal_theme import TerminalTheme
from rich.text import Text

CTRL_C, CTRL_D = "\x03", "\x04"
# Makes the terminal the process' own, so that Ctrl-C reaches it as from a keyboard.
LEADER = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
    "os.execvp(sys.argv[1], sys.argv[1:])"
)
# pyte's names that rich knows by others.
COLOURS = {"brown": "yellow", "default": "default"}
BACKGROUND, FOREGROUND = (13, 17, 23), (230, 237, 243)
NORMAL = [
    *[(72, 79, 88), (255, 123, 114), (63, 185, 80), (210, 153, 34)],
    *[(88, 166, 255), (188, 140, 255), (57, 197, 207), (177, 186, 196)],
]
THEME = TerminalTheme(BACKGROUND, FOREGROUND, NORMAL)


class Terminal:
    """A command that runs in a terminal.

    Args:
        command: a program and its words; `softmask` is the one beside this Python.
        size: columns and lines.
        env: of the command; by default this process' own.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        size: tuple[int, int] = (80, 24),
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        columns, lines = size
        self._screen = pyte.HistoryScreen(columns, lines, history=10_000)
        self._stream = pyte.Stream(self._screen)
        # What a program asks a terminal, such as where its cursor is, is answered as if typed.
        self._screen.write_process_input = self.write
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        # When something was last drawn, and the longest time between two drawings, in seconds.
        self.started = self._drawn = time.monotonic()
        self.longest_still = 0.0
        name, *words = command
        if name == "softmask":
            name = str(Path(sys.executable).parent / name)
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        plain = {"TERM": "xterm-256color", "COLORTERM": "truecolor", "COLUMNS": "", "LINES": ""}
        self._process = subprocess.Popen(
            [sys.executable, "-c", LEADER, name, *words],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            cwd=cwd,
            env={**(os.environ if env is None else env), **plain},
        )
        os.close(slave)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_error: object) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        os.close(self._master)

    def write(self, keys: str) -> None:
        """Types these keys."""
        os.write(self._master, keys.encode())

    def screen(self) -> str:
        """What stands on the screen, without blanks at the ends of lines."""
        return "\n".join(line.rstrip() for line in self._screen.display).rstrip()

    def everything(self) -> str:
        """The screen, and above it what was scrolled out of it."""
        width = self._screen.columns
        top = ["".join(line[i].data for i in range(width)) for line in self._screen.history.top]
        return "\n".join([*(line.rstrip() for line in top), self.screen()])

    def wait_for(self, pattern: str, seconds: float = 120) -> str:
        """The screen as soon as `pattern` (a regular expression) is found on it.

        Raises:
            AssertionError: it is not, in this time or before the command ends.
        """
        found = self._watch(lambda: re.search(pattern, self.screen()) is not None, seconds)
        assert found, f"no {pattern!r} on the screen:\n{self.everything()}"
        return self.screen()

    def finish(self, seconds: float = 120) -> int:
        """The exit code, as soon as the command has ended and all it wrote is drawn.

        Raises:
            AssertionError: it does not end in this time.
        """
        self._watch(lambda: False, seconds)
        assert self._process.poll() is not None or self._process.wait(60) is not None
        return self._process.returncode

    def _watch(self, is_done: Callable[[], bool], seconds: float) -> bool:
        """Draws what comes until something holds; False when the command ends or time is up."""
        until = time.monotonic() + seconds
        while not is_done():
            ready, _, _ = select.select([self._master], [], [], max(until - time.monotonic(), 0))
            if not ready or not self._draw():
                return is_done()
        return True

    def _draw(self) -> bool:
        """Draws what the command wrote; False where it wrote its last."""
        try:
            data = os.read(self._master, 65536)
        except OSError:  # the other side is closed
            data = b""
        if not data:
            return False
        now = time.monotonic()
        self.longest_still = max(self.longest_still, now - self._drawn)
        self._drawn = now
        self._stream.feed(self._decode(data))
        return True

    def picture(self, path: Path, title: str) -> None:
        """Writes the screen, as soon as it is drawn to its end, as an SVG without other fonts."""
        while select.select([self._master], [], [], 0.05)[0] and self._draw():
            pass
        columns, lines = self._screen.columns, self._screen.display
        last = max((i for i, line in enumerate(lines) if line.strip()), default=0)
        console = Console(record=True, width=columns, file=io.StringIO(), force_terminal=True)
        for y in range(last + 1):
            text = Text(no_wrap=True, end="\n")
            for x in range(columns):
                cell = self._screen.buffer[y][x]
                text.append(cell.data, _style(cell))
            console.print(text, soft_wrap=True)
        drawn = console.export_svg(title=title, theme=THEME, unique_id="terminal")
        drawn = re.sub(r"@font-face \{.*?\}\s*", "", drawn, flags=re.DOTALL)
        # Each line is cut to the height of rich's own font: others lose their underscores.
        drawn = re.sub(r' clip-path="url\(#terminal-line-\d+\)"', "", drawn)
        path.write_text(drawn, encoding="utf-8")


def _style(cell: pyte.screens.Char) -> Style:
    return Style(
        color=_colour(cell.fg),
        bgcolor=_colour(cell.bg),
        bold=cell.bold,
        italic=cell.italics,
        underline=cell.underscore,
        reverse=cell.reverse,
    )


def _colour(name: str) -> str:
    """rich's name of a colour of pyte's."""
    if re.fullmatch(r"[0-9a-f]{6}", name):
        return f"#{name}"
    return COLOURS.get(name, name.replace("bright", "bright_"))
