"""A conversation becomes a row of tokens, or is left out for one of `REASONS`.

A row trains on its last message, the answer; everything before it is the prompt. With `train_on:
all` every answer is the last one of a row of its own: a masked model sees both sides of a position,
and must not see the turns behind an answer that it will have to write without them. A row of plain
text has no prompt but its first token, which nothing precedes that could predict it.
"""

from __future__ import annotations

import functools
import hashlib
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from ..decoding.chat_template import ChatTemplateError, render_chat
from ..decoding.control_names import ControlNames
from ..reporting.progress import progress
from ..reporting.words import count
from .config import ConversationConfig
from .messages import INCOMPLETE, NO_TEXT, TEXT_ROLE, TOOL_TURNS, Messages
from .sources import SourceRow, in_batches

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NO_TEMPLATE = (
    "the tokenizer has no chat template: take the checkpoint of an instruct model, put a "
    "chat_template.jinja into its folder, or give plain text (a column text)"
)
TOOL_CALLS = ("<tool_call>", "</tool_call>")
REASONS = {
    INCOMPLETE: "fewer than two messages, null or broken text, or no answer at the end",
    NO_TEXT: "a message with other parts than text, such as a picture",
    TOOL_TURNS: "a message of a tool, or with calls of tools beside its text",
    "template": "the template refuses the chat, or the prompt's text does not begin the whole's",
    "too long": "more than max_length tokens",
    "short answer": "an answer of fewer than min_response tokens",
    "tool calls": "<tool_call> in the text; see drop_tool_calls",
    "mask token": "the template writes the mask token itself",
    "in validation": "the same tokens as a row of the validation part",
}


@dataclass
class Counts:
    """What became of the conversations that were drawn."""

    kept: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    prompt_tokens: int = 0
    response_tokens: int = 0

    @property
    def drawn(self) -> int:
        return self.kept + sum(self.left_out.values())

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.response_tokens

    @property
    def reasons(self) -> str:
        return ", ".join(f"{r} {self.left_out[r]:,}" for r in REASONS if r in self.left_out)

    def add(self, reason: str | None, prompt: int, whole: int) -> None:
        """Counts a row of so many tokens."""
        if reason is not None:
            self.left_out[reason] = self.left_out.get(reason, 0) + 1
            return
        self.kept += 1
        self.prompt_tokens += prompt
        self.response_tokens += whole - prompt

    def __str__(self) -> str:
        left_out = f"{self.drawn - self.kept:,} left out"
        left_out += f" ({self.reasons})" if self.left_out else ""
        return (
            f"{count(self.kept, 'conversation')}, {left_out}; "
            f"tokens: {self.prompt_tokens:,} in prompts, {self.response_tokens:,} in responses, "
            f"{self.tokens:,} in all"
        )


def tokenise(
    drawn: Iterator[SourceRow],
    config: ConversationConfig,
    tokenizer: PreTrainedTokenizerBase,
    counts: Counts,
    held_out: set[bytes],
) -> Iterator[dict[str, list[Any]]]:
    """Yields the columns of the rows that are kept, in batches, and counts all of them.

    The chat template is rendered to text first and then tokenised, as `apply_chat_template` does,
    but a batch at a time in the tokenizer's threads. Names of control tokens in a message are
    text, as in decoding.

    Args:
        counts: is added to.
        held_out: digests (`digest_of`) of rows that must not come.
    """
    names = ControlNames(tokenizer)
    if config.train_on == "all":
        drawn = _each_answer(drawn)
    with progress("reading conversations") as shown:
        for batch in in_batches(drawn):
            columns: dict[str, list[Any]] = {"input_ids": [], "prompt_length": [], "id": []}
            rendered = [_rendered(messages, tokenizer, names) for _, messages in batch]
            rows = _encoded(rendered, tokenizer, names)
            for (where, _), one, (ids, length) in zip(batch, rendered, rows, strict=True):
                reason = one.reason or _reason(length, ids, names.show(one.whole), config, names)
                if reason is None and digest_of(ids) in held_out:
                    reason = "in validation"
                if reason is None:
                    length = length if config.mask_prompt and length else 1
                    for name, value in zip(columns, (ids, length, where), strict=True):
                        columns[name].append(value)
                counts.add(reason, length or 0, len(ids))
            yield columns
            shown.update(f"reading conversations: {counts.drawn:,}")


def _each_answer(drawn: Iterator[SourceRow]) -> Iterator[SourceRow]:
    """A row for each answer of a conversation, with all that precedes it."""
    for where, messages in drawn:
        if isinstance(messages, str) or len(messages) == 1:
            yield where, messages
            continue
        roles = [message["role"] for message in messages]
        ends = [i for i in range(1, len(roles)) if roles[i] == "assistant"]
        for number, end in enumerate(ends, 1):
            yield f"{where}, answer {number}", messages[: end + 1]


def digest_of(ids: list[int]) -> bytes:
    """Stands for the tokens of a row."""
    return hashlib.sha256(array("i", ids).tobytes()).digest()


class Rendered(NamedTuple):
    """Texts of a conversation's prompt and of all of it; or the reason why it is left out."""

    reason: str | None
    prompt: str = ""
    whole: str = ""
    has_names: bool = False  # names of control tokens, of which marks stand in the texts


def _rendered(
    messages: Messages | str, tokenizer: PreTrainedTokenizerBase, names: ControlNames
) -> Rendered:
    if isinstance(messages, str):
        return Rendered(messages)
    hidden, has_names = names.hide(messages)
    if messages[0]["role"] == TEXT_ROLE:
        whole = hidden[0]["content"] + (str(tokenizer.eos_token) if tokenizer.eos_token else "")
        return Rendered(None, "", whole, has_names)
    if not tokenizer.chat_template:
        raise ValueError(NO_TEMPLATE)
    render = functools.partial(render_chat, tokenizer)
    try:
        prompt = render(hidden[:-1], add_generation_prompt=True)
        return Rendered(None, prompt, _answered(render, hidden, prompt), has_names)
    except ChatTemplateError:  # it refuses them, such as for two users in a row
        return Rendered("template")


def _answered(render: Callable[..., str], messages: Messages, prompt: str) -> str:
    """The text of a conversation; it begins with that of its prompt wherever that makes sense.

    Templates may open an answer with what they leave out of a finished one, such as an empty
    thought. An answer will stand behind it, so it is trained there.
    """
    whole = render(messages)
    if whole.startswith(prompt):
        return whole
    begun, content = render(messages[:-1]), messages[-1]["content"].strip()
    messages = [*messages[:-1], {**messages[-1], "content": content}]
    up_to_end, bare = render(messages, continue_final_message=True), render(messages)
    if not (prompt.startswith(begun) and whole.startswith(begun) and up_to_end.endswith(content)):
        return whole
    return prompt + content + bare[len(up_to_end) :]


def _encoded(
    rendered: list[Rendered], tokenizer: PreTrainedTokenizerBase, names: ControlNames
) -> Iterator[tuple[list[int], int | None]]:
    """Each conversation's ids, and how many are its prompt's; None: the prompt is no beginning."""
    # Not verbose: no warning about model_max_length, as our max_length decides.
    options = {"add_special_tokens": False, "return_attention_mask": False, "verbose": False}
    texts = [one.prompt for one in rendered] + [one.whole for one in rendered]
    ids = tokenizer(texts, **options)["input_ids"]
    for one, prompt, whole in zip(rendered, ids, ids[len(rendered) :], strict=False):
        if not one.whole.startswith(one.prompt):
            yield whole, None
        elif one.has_names:
            encoded = names.encode_rendered(one.whole)
            yield encoded.ids, _before(len(names.show(one.prompt)), encoded.starts)
        elif whole[: len(prompt)] == prompt:
            yield whole, len(prompt)
        else:
            options = {"add_special_tokens": False, "return_offsets_mapping": True}
            offsets = tokenizer(one.whole, verbose=False, **options)["offset_mapping"]
            yield whole, _before(len(one.prompt), [start for start, _ in offsets])


def _before(end: int, starts: list[int]) -> int:
    """Tokens that begin before a border of the text.

    An answer that begins with a line break makes one token, "\\n\\n", across it. It is the
    prompt's, as in the published count.
    """
    return sum(start < end for start in starts)


def _reason(
    prompt_length: int | None,
    ids: list[int],
    text: str,
    config: ConversationConfig,
    names: ControlNames,
) -> str | None:
    """Why a row is left out; None: it is kept."""
    if prompt_length is None:
        return "template"
    if len(ids) > config.max_length:
        return "too long"
    if len(ids) - prompt_length < config.min_response:
        return "short answer"
    if config.drop_tool_calls and any(name in text for name in TOOL_CALLS if name in names.ids):
        return "tool calls"
    # It would be a position to predict in the prompt, and a target that is never sampled.
    return "mask token" if names.mask_id in ids else None
