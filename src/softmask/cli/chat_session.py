"""A conversation, and the settings that its next answer is written with; no terminal here."""

from __future__ import annotations

import argparse
import copy
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from ..config import SamplingConfig, SoftMaskConfig, from_mapping, require
from ..files import append_line, expand_home
from ..sampling import merged
from .generate import start_generation
from .options import ON_OFF, Parser, given, soft_mask_of

# Answers may be long, as they cost what is written of them: the canvas grows block by block.
MAX_NEW_TOKENS = 1024
# What a chat takes where neither the checkpoint nor the user says anything else. Settings that
# belong together are taken together. The first are those of Dream's model card; a block-causal
# model has blocks of its own in place of the others.
DEFAULTS: tuple[dict[str, Any], ...] = (
    {"temperature": 0.2, "top_p": 0.95},
    {"block_length": 32},
    {"lookahead": 64},
)
Messages = list[dict[str, str]]
# What an option's type is called, and a value far below what any setting takes.
KINDS: dict[Any, tuple[str, Any]] = {
    int: ("a whole number", -(2**62)),
    float: ("a number", -1e30),
}


class Session:
    """A conversation with a checkpoint.

    Args:
        parser: the command's, whose options are the settings that `set` changes.

    Raises:
        ValueError: the settings contradict each other.
    """

    def __init__(self, checkpoint: Any, args: argparse.Namespace, parser: Parser) -> None:
        self.checkpoint, self.args = checkpoint, copy.copy(args)
        self.settable = parser.settings()
        self.messages: Messages = []
        self.last_seed: int | None = None
        self._check()

    # Turns.

    def ask(self, text: str) -> Any:
        """The Generation of an answer to this; it becomes a turn by `keep`."""
        return self._start([*self.messages, {"role": "user", "content": text}], self.args.seed)

    def again(self, seed: int | None) -> Any:
        """The Generation of another answer to the last question.

        Args:
            seed: None: another than the last one.

        Raises:
            ValueError: there is no answer yet, or nothing is drawn, so that it would be the same.
        """
        require(bool(self.messages), "there is no answer yet: say something first")
        require(
            self.sampling.is_random,
            "nothing is drawn at temperature 0, another answer would be the same: "
            "/set temperature 0.5",
        )
        if seed is None and self.args.seed is not None and self.last_seed is not None:
            seed = self.last_seed + 1
        return self._start(self.messages[:-1], seed)

    def _start(self, messages: Messages, seed: int | None) -> Any:
        from ..decoding.prompts import encode_chat

        context = self._context
        room = context - len(encode_chat(self.checkpoint, self._with_system(messages)))
        require(
            room > 0,
            f"no room is left in the model's context of {context} tokens: /clear the conversation, "
            "or say less",
        )
        args = copy.copy(self.args)
        args.seed, args.max_new_tokens = seed, min(args.max_new_tokens, room)
        return start_generation(args, self.checkpoint, messages, defaults=self._defaults())

    @property
    def _context(self) -> int:
        return int(self.checkpoint.model.config.max_position_embeddings)

    def _with_system(self, messages: Messages) -> Messages:
        system = [{"role": "system", "content": self.args.system}] if self.args.system else []
        return [*system, *messages]

    def keep(self, run: Any, text: str) -> None:
        """Makes a question and its answer part of the conversation."""
        question = run.prompts[0]
        self.messages = [*question, {"role": "assistant", "content": text}]
        self.last_seed = run.seeds[0]

    def clear(self) -> None:
        """Forgets the conversation; the settings stay."""
        self.messages = []

    def save(self, name: str) -> int:
        """Appends the conversation to a file that `softmask train --data` reads; its line there.

        Raises:
            ValueError: no answer to keep, or the file is none of lines of JSON by its name.
        """
        path = expand_home(name)
        require(path.suffix == ".jsonl", "give the file a name that ends in .jsonl, a chat a line")
        require(bool(self.messages), "there is no conversation to save yet")
        require(path.parent.is_dir(), f"there is no folder for {path}")
        chat = {"messages": self._with_system(self.messages)}
        line = json.dumps(chat, ensure_ascii=False)
        before = path.read_bytes() if path.exists() else b""
        cut_off = before and not before.endswith(b"\n")
        append_line(path, f"\n{line}" if cut_off else line)
        return len(before.splitlines()) + 1

    # Settings.

    @property
    def sampling(self) -> SamplingConfig:
        """The settings of the next answer; its steps default to one a mask."""
        settings: dict[str, Any] = {}
        for _, values in reversed([*self.sources()]):
            settings = merged(values, settings)
        settings = {"steps": self.args.max_new_tokens} | settings
        return from_mapping(SamplingConfig, settings, "sampling")

    def _defaults(self) -> dict[str, Any]:
        named = {**self.checkpoint.sampling, **given(self.args, SamplingConfig)}
        groups = DEFAULTS if self.checkpoint.model.config.block_size is None else DEFAULTS[:1]
        taken = [group for group in groups if not group.keys() & named.keys()]
        values = {name: value for group in taken for name, value in group.items()}
        if named.get("block_length", True) is None:  # a checkpoint may say so
            values.pop("lookahead", None)
        return values

    def set(self, name: str, value: str) -> None:
        """Changes a setting by its one name; the value "default" takes the change back.

        Raises:
            ValueError: there is no such setting, or the value does not suit it or the others.
        """
        action = self.settable.get(name.replace("-", "_"))
        if action is None:
            from ..settings import unknown_setting

            raise unknown_setting("/set", name, list(self.settable))
        try:
            changed = _parsed(action, name, value)
        except argparse.ArgumentTypeError as error:  # no module or rule of this name
            raise ValueError(str(error)) from error
        except ValueError as error:
            if action.type not in KINDS:
                raise
            kind, far = KINDS[action.type]
            bounds = re.search(r"must .*(?=, not )", self._refusal(action, far))
            within = f" (it {bounds[0]})" if bounds is not None else ""
            raise ValueError(f"{name} takes {kind}{within}, not {value!r}") from error
        self._change(action, changed)
        if action.dest == "no_soft_mask" and value == "on":
            require(
                soft_mask_of(self.args, self.checkpoint.soft_mask) is not None,
                "this checkpoint has no soft-mask parameters: /set feedback spherical, say",
            )

    def _refusal(self, action: argparse.Action, value: Any) -> str:
        """What is said of a value that no setting takes: the range is told there."""
        try:
            with_it = copy.copy(self)
            with_it._change(action, value)
        except ValueError as error:
            return str(error)
        return ""

    def _change(self, action: argparse.Action, value: Any) -> None:
        before = self.args
        self.args = copy.copy(before)
        setattr(self.args, action.dest, value)
        try:
            self._check()
        except ValueError:
            self.args = before
            raise

    def _check(self) -> None:
        most, context = self.args.max_new_tokens, self._context
        require(most >= 1, f"max_new_tokens must be at least 1, not {most}")
        require(  # the default takes what room there is
            most <= context or most == MAX_NEW_TOKENS,
            f"max_new_tokens is {most}, but the model's context is {context}",
        )
        _ = self.sampling
        soft_mask_of(self.args, self.checkpoint.soft_mask)

    def sources(self) -> Iterable[tuple[str, Mapping[str, Any]]]:
        """Who set what of the sampling, the later ones winning."""
        yield "chat", self._defaults()
        yield "the checkpoint", self.checkpoint.sampling
        yield "you", given(self.args, SamplingConfig)

    def rows(self) -> list[tuple[str, str, str]]:
        """What applies: name, value, and who says so."""
        whence = {name: whom for whom, names in self.sources() for name in names}
        seed = self.args.seed
        rows = [
            ("max_new_tokens", str(self.args.max_new_tokens), ""),
            ("seed", "drawn" if seed is None else str(seed), ""),
        ]
        for name, value in vars(self.sampling).items():
            if value == {}:  # options of a rule, which has none
                continue
            text = "one per mask" if name == "steps" and name not in whence else _shown(value)
            rows.append((name, text, whence.get(name, "")))
        soft = soft_mask_of(self.args, self.checkpoint.soft_mask)
        rows.append(("soft_mask", _shown(soft is not None), ""))
        own, preset = given(self.args, SoftMaskConfig), self.args.feedback
        others = f"feedback {preset}"
        if preset in (None, "published"):
            others = "" if self.checkpoint.soft_mask is None else "the checkpoint"
        for name, value in vars(soft).items() if soft is not None else ():
            if value == {}:
                continue
            whom = "you" if name in own else others
            rows.append((f"soft_mask_{name}", _shown(value), whom))
        return rows


def _shown(value: Any) -> str:
    if value is None or value is False:
        return "off"
    if value is True:
        return "on"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _parsed(action: argparse.Action, name: str, value: str) -> Any:
    """The value of an option's word."""
    if value == "default":
        return action.default
    if action.nargs == 0:
        require(value in ON_OFF, f"{name} is on or off, not {value!r}")
        return ON_OFF[value] != (name == "soft_mask")  # whose option is its opposite
    assert callable(action.type)
    return action.type(value)
