"""Where a turn is typed: history, editing over several lines, completion of commands."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.buffer import Buffer
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.shortcuts import CompleteStyle


def make_prompt(words: Mapping[str, Sequence[str]]) -> PromptSession[str]:
    """A prompt whose `prompt()` returns a turn.

    Enter sends; Alt-Enter, or Enter behind a backslash, begins a new line.

    Args:
        words: what can follow each command, for Tab.
    """
    return PromptSession(
        "> ",
        multiline=True,
        prompt_continuation="  ",
        history=_history(),
        completer=_Words(words),
        # A menu would keep half of the screen free.
        complete_style=CompleteStyle.READLINE_LIKE,
        complete_while_typing=False,
        key_bindings=_keys(),
    )


@contextmanager
def no_echo() -> Iterator[None]:
    """What is typed meanwhile does not disturb what is drawn: it stands at the next prompt.

    Windows shows nothing of it in any case.
    """
    if sys.platform == "win32":
        yield
        return
    import termios

    try:
        terminal = sys.stdin.fileno()
        before = termios.tcgetattr(terminal)
    except (OSError, termios.error):  # standard input is no terminal
        yield
        return
    quiet = list(before)
    quiet[3] &= ~termios.ECHO
    termios.tcsetattr(terminal, termios.TCSADRAIN, quiet)
    try:
        yield
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)


def state_folder() -> Path:
    """Where a program of this user keeps what it remembers (the XDG base directories)."""
    root = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(root) / "softmask"


def _history() -> History:
    """What was typed before, for this user's eyes alone; of this session where none can be kept."""
    path = state_folder() / "chat_history"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        with path.open("ab"):
            return FileHistory(path)
    except OSError:
        return InMemoryHistory()


def _keys() -> KeyBindings:
    keys = KeyBindings()

    @keys.add("enter")
    def _send(event: KeyPressEvent) -> None:
        buffer: Buffer = event.current_buffer
        if buffer.document.text_before_cursor.endswith("\\"):
            buffer.delete_before_cursor()
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return keys


class _Words(Completer):
    """Commands, and what follows them."""

    def __init__(self, words: Mapping[str, Sequence[str]]) -> None:
        self._words = words

    def get_completions(
        self, document: Document, complete_event: CompleteEvent
    ) -> Iterable[Completion]:
        text = document.text_before_cursor
        if not text.startswith("/"):
            return
        command, space, begun = text.partition(" ")
        known = self._words.get(command, ()) if space else list(self._words)
        typed = begun if space else command
        for word in known:
            if word.startswith(typed):
                yield Completion(word, start_position=-len(typed))
