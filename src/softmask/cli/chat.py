"""softmask chat: a conversation with an Instruct model.

A line is a turn, in a terminal and in a pipe; /help lists the commands. Ctrl-C ends an answer,
Ctrl-D the session. Answers are decoded block by block, as long as they turn out to be.
"""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

from ..config import is_on
from ..reporting.words import tell
from .chat_session import DEFAULTS, MAX_NEW_TOKENS, Session
from .closing_line import Cost, print_text, say
from .generate import show_steps
from .mistakes import sentence
from .options import (
    Parser,
    add_decoding_options,
    add_model_options,
    load_model,
    new_parser,
    soft_mask_of,
)

COMMANDS = {
    "/help": "this list",
    "/set": "NAME VALUE changes a setting (the value default takes it back); alone: what applies",
    "/system": "TEXT is the system message from now on; alone: the one that is set; - removes it",
    "/retry": "another answer to the last question; with a number, by that seed",
    "/save": "FILE.jsonl appends the conversation as a line that `softmask train` reads",
    "/clear": "forget the conversation",
    "/exit": "leave, as Ctrl-D does",
}


def make_parser() -> Parser:
    """The command's options."""
    parser = new_parser("chat", __doc__)
    add_model_options(parser, "the bundled, which has no chat template: name an Instruct model")
    own = {name: value for group in DEFAULTS for name, value in group.items()}
    add_decoding_options(parser, MAX_NEW_TOKENS, own)
    return parser


def run(args: argparse.Namespace, _argv: list[str]) -> int:
    """Runs the command with parsed arguments."""
    from .chat_prompt import no_echo

    with no_echo():
        checkpoint = load_model(args)
    from ..decoding.prompts import has_chat_template

    if not has_chat_template(checkpoint):
        raise ValueError(
            "this model has no chat template: use `softmask generate`, or --model with an "
            "Instruct model"
        )
    chat = _Chat(Session(checkpoint, args, make_parser()), args)
    if not chat.is_terminal:
        for number, line in enumerate(sys.stdin):
            line = line.removeprefix("\ufeff") if number == 0 else line  # as editors begin a file
            if line.strip() and not chat.take(line.strip()):
                break
        return 0
    chat.banner()
    for text in _typed(chat.session):
        try:
            if text.strip() and not chat.take(text.rstrip()):
                break
        except KeyboardInterrupt:  # before an answer had begun, or twice
            say(["stopped"], args)
        except (ValueError, OSError, MemoryError, RuntimeError) as error:
            # The turn that failed never became part of the conversation.
            reason = sentence(error)
            if reason is None:
                raise
            tell(f"error: {reason}", sys.stderr)
    return 0


def _typed(session: Session) -> Iterator[str]:
    """What is typed, until Ctrl-D."""
    from .chat_prompt import make_prompt

    words = {name: list(session.settable) if name == "/set" else [] for name in COMMANDS}
    prompt = make_prompt(words)
    while True:
        try:
            yield prompt.prompt()
        except KeyboardInterrupt:  # an empty line again
            continue
        except EOFError:
            return


class _Chat:
    """What a turn does, on the screen and to the session."""

    def __init__(self, session: Session, args: argparse.Namespace) -> None:
        self.session, self.args = session, args
        self.is_terminal = sys.stdin.isatty() and sys.stdout.isatty()
        # Standard output is for answers alone where something reads them.
        self._aside = sys.stdout if self.is_terminal else sys.stderr

    def banner(self) -> None:
        """Which model this is, and what can be typed."""
        checkpoint = self.session.checkpoint
        soft = soft_mask_of(self.args, checkpoint.soft_mask)
        feedback = "soft-masked" if is_on(soft) else "plain"
        device = checkpoint.model.device
        say(
            [
                f"{checkpoint.name}, {feedback}, on {device}",
                "/help lists the commands. Alt-Enter or a backslash at the end begins a new line; "
                "Ctrl-C ends an answer, Ctrl-D the session.",
            ],
            self.args,
        )

    def take(self, text: str) -> bool:
        """Does what was typed; False: that was all.

        Raises:
            ValueError: an unknown command, or what `Session` refuses; the conversation is as it
                was.
        """
        if not text.startswith("/"):
            self._answer(self.session.ask(text))
            return True
        name, _, rest = text.partition(" ")
        if name not in COMMANDS:
            near = difflib.get_close_matches(name, COMMANDS, n=1)
            hint = f"did you mean {near[0]}?" if near else "/help lists them"
            raise ValueError(f"there is no command {name}: {hint}")
        does: dict[str, Callable[[str], None]] = {
            "/help": self._help,
            "/set": self._set,
            "/system": self._system,
            "/retry": self._retry,
            "/save": self._save,
            "/clear": self._clear,
        }
        if name == "/exit":
            return False
        does[name](rest.strip())
        return True

    def _answer(self, run: Any) -> None:
        """Writes an answer and keeps the turn; of one that was stopped, what was decided."""
        from .chat_prompt import no_echo

        try:
            with no_echo():
                show_steps(run, self.args, run.text_start(0))
        except KeyboardInterrupt:
            if not self.is_terminal:
                raise
            self._keep_decided(run)
            return
        done = run.completions()[0]
        self.session.keep(run, done.text)
        print_text(done.text)
        parts = [str(Cost.of(run))]
        if run.sampling.is_random:
            parts.append(f"seed {done.seed}")
        if done.finish_reason == "length":
            parts.append("cut off at max_new_tokens")
        say([", ".join(parts)], self.args)

    def _keep_decided(self, run: Any) -> None:
        """Of an answer that was stopped, what was decided from the left stays, if anything was."""
        text = "" if run.last is None else run.decided(run.last)
        if not text.strip():
            say(["stopped before anything was decided: the turn is taken back"], self.args)
            return
        self.session.keep(run, text)
        print_text(text)
        forwards = run.last.forwards
        say([f"stopped after {forwards} forwards: this much is kept, or /retry"], self.args)

    def _help(self, _rest: str) -> None:
        self._table(list(COMMANDS.items()))

    def _set(self, rest: str) -> None:
        if not rest:
            rows = self.session.rows()
            self._table([row for row in rows if row[1] != "off"])
            off = ", ".join(name for name, value, _ in rows if value == "off")
            tell(f"off: {off}", self._aside)
            return
        # NAME VALUE, NAME=VALUE; a value may have such a sign of its own.
        name, value = [*re.split(r"\s*=\s*|\s+", rest, maxsplit=1), ""][:2]
        if not value:
            raise ValueError(f"give a value: /set {name} VALUE")
        self.session.set(name, value)
        values = {row[0]: row[1] for row in self.session.rows()}
        say([f"{name} {values.get(name.replace('-', '_'), value)}"], self.args)

    def _system(self, rest: str) -> None:
        if rest:
            self.session.args.system = None if rest == "-" else rest
            done = "removed" if rest == "-" else "set"
            say([f"the system message is {done}, from the next answer on"], self.args)
        else:
            tell(self.session.args.system or "no system message is set", self._aside)

    def _clear(self, _rest: str) -> None:
        self.session.clear()
        say(["the conversation is forgotten; settings and system message stay"], self.args)

    def _retry(self, rest: str) -> None:
        if rest and not rest.isdecimal():
            raise ValueError(f"a seed is a whole number, not {rest!r}")
        self._answer(self.session.again(int(rest) if rest else None))

    def _save(self, rest: str) -> None:
        if not rest:
            raise ValueError("give a file: /save chats.jsonl")
        say([f"line {self.session.save(rest)} of {rest}"], self.args)

    def _table(self, rows: list[tuple[str, ...]]) -> None:
        """Rows side by side, in a pipe as they are."""
        if not self.is_terminal:
            for row in rows:
                print("\t".join(row), file=self._aside, flush=True)
            return
        from rich.console import Console
        from rich.table import Table

        table = Table.grid(padding=(0, 2))
        table.add_column(no_wrap=True)
        for row in rows:
            table.add_row(*row)
        Console(highlight=False).print(table)
