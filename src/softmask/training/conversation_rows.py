"""A conversation becomes a row of tokens, or is left out for one of `REASONS`.

A row trains on its last message, the answer; everything before it is the prompt.
"""

from __future__ import annotations

import functools
import hashlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .config import ConversationConfig
from .messages import INCOMPLETE, NO_TEXT, TOOL_TURNS, Messages
from .sources import SourceRow, in_batches

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOOL_CALLS = ("<tool_call>", "</tool_call>")
REASONS = {
    INCOMPLETE: "fewer than two messages, null or broken text, or no answer at the end",
    NO_TEXT: "a message with other parts than text, such as a picture",
    TOOL_TURNS: "a message of a tool, or with calls of tools beside its text",
    "template": "the template refuses the chat, or the prompt's text does not begin the whole's",
    "too long": "more than max_length tokens",
    "short answer": "an answer of fewer than min_response tokens",
    "tool calls": "<tool_call> tokens; see drop_tool_calls",
    "mask token": "the text holds the mask token itself",
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
            f"{self.kept:,} conversations, {left_out}; tokens: {self.prompt_tokens:,} in prompts, "
            f"{self.response_tokens:,} in responses, {self.tokens:,} in all"
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
    but a batch at a time in the tokenizer's threads. The template's own `tokenize=True` returns a
    mapping since transformers 5.

    Args:
        counts: is added to.
        held_out: digests (`digest_of`) of rows that must not come.
    """
    from datasets.utils import tqdm

    vocabulary = tokenizer.get_vocab()
    tools = {vocabulary[t] for t in TOOL_CALLS if config.drop_tool_calls and t in vocabulary}
    with tqdm(desc="Tokenising", unit=" conversations", disable=None) as bar:
        for batch in in_batches(drawn):
            columns: dict[str, list[Any]] = {"input_ids": [], "prompt_length": [], "id": []}
            rendered = [_rendered(messages, tokenizer) for _, messages in batch]
            reasons, *texts = zip(*rendered, strict=True)
            # Not verbose: no warning about model_max_length, as our max_length decides.
            options = {"add_special_tokens": False, "return_attention_mask": False}
            ids = tokenizer([*texts[0], *texts[1]], verbose=False, **options)["input_ids"]
            prompts, wholes = ids[: len(batch)], ids[len(batch) :]
            for (where, _), reason, texts_of, prompt, whole in zip(
                batch, reasons, zip(*texts, strict=True), prompts, wholes, strict=True
            ):
                length = _prompt_length(texts_of, prompt, whole, tokenizer)
                reason = reason or _reason(length, whole, config, tools, tokenizer.mask_token_id)
                if reason is None and digest_of(whole) in held_out:
                    reason = "in validation"
                if reason is None:
                    for name, value in zip(columns, (whole, length, where), strict=True):
                        columns[name].append(value)
                counts.add(reason, length or 0, len(whole))
            yield columns
            bar.update(len(batch))


def digest_of(ids: list[int]) -> bytes:
    """Stands for the tokens of a row."""
    return hashlib.sha256(array("i", ids).tobytes()).digest()


def _rendered(
    messages: Messages | str, tokenizer: PreTrainedTokenizerBase
) -> tuple[str | None, str, str]:
    """The reason why the chat is left out already, the prompt's text and the whole's."""
    from jinja2.exceptions import TemplateError, TemplateSyntaxError

    if isinstance(messages, str):
        return messages, "", ""
    render: Any = functools.partial(tokenizer.apply_chat_template, tokenize=False)
    try:
        return None, render(messages[:-1], add_generation_prompt=True), render(messages)
    except TemplateSyntaxError as error:
        raise ValueError(f"the chat template is broken ({error}): correct it") from error
    except TemplateError:  # raise_exception() in the template, such as for two users in a row
        return "template", "", ""


def _prompt_length(
    texts: tuple[str, str],
    prompt: list[int],
    whole: list[int],
    tokenizer: PreTrainedTokenizerBase,
) -> int | None:
    """Tokens of the whole row that touch the prompt's text; None: it does not begin with that.

    An answer that begins with a line break makes one token, "\\n\\n", across the border. It is the
    prompt's, as in the published count.
    """
    prompt_text, whole_text = texts
    if not whole_text.startswith(prompt_text):
        return None
    if whole[: len(prompt)] == prompt:
        return len(prompt)
    options = {"add_special_tokens": False, "return_offsets_mapping": True}
    offsets = tokenizer(whole_text, verbose=False, **options)["offset_mapping"]
    return sum(start < len(prompt_text) for start, _ in offsets)


def _reason(
    prompt_length: int | None,
    whole: list[int],
    config: ConversationConfig,
    tools: set[int],
    mask_id: int | None,
) -> str | None:
    """Why a row is left out; None: it is kept."""
    if prompt_length is None:
        return "template"
    if len(whole) > config.max_length:
        return "too long"
    if len(whole) - prompt_length < config.min_response:
        return "short answer"
    if not tools.isdisjoint(whole):
        return "tool calls"
    # It would be a position to predict in the prompt, and a target that is never sampled.
    return "mask token" if mask_id in whole else None
