"""From what people write to token ids, and back.

Names of control tokens such as `<|im_end|>` are text in whatever a conversation or a request
says, and masks come from holes alone. A raw prompt in Python or on the command line may name them.
"""

from __future__ import annotations

import codecs
import copy
import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeGuard

from ..models.checkpoint import Checkpoint
from ..settings import plain
from .arguments import is_whole_number
from .chat_template import render_chat
from .control_names import ControlNames, require_characters
from .healing import without_space
from .sampler import Rules

HOLE = re.compile(r"\[\[(\d+)\]\]")
# Digits of the longest hole that is counted: no context has more.
MOST_DIGITS = 9
Messages = Sequence[Mapping[str, Any]]
TokenIds = Sequence[int]
Prompt = str | Messages | TokenIds


def is_token_ids(prompt: Prompt) -> TypeGuard[TokenIds]:
    """Whether a prompt is token ids already."""
    return not isinstance(prompt, str) and isinstance(prompt[0], int)


def known_ids(checkpoint: Checkpoint, given: Any) -> list[int]:
    """Token ids that may stand in a text: a list, an array or a tensor.

    Raises:
        ValueError: one is no id, is beyond the vocabulary, or is the mask.
    """
    ids = list(plain(given))
    size, mask_id = checkpoint.model.config.vocab_size, checkpoint.model.mask_id
    for index in ids:
        if not is_whole_number(index) or not 0 <= index < size or index == mask_id:
            raise ValueError(
                f"token id {index} cannot stand in a text: ids lie between 0 and {size - 1}, "
                f"and {mask_id} is the mask, which `denoise` fills in"
            )
    return [int(index) for index in ids]


def read_prompts(given: Any) -> tuple[list[Prompt], bool]:
    """The prompts in whatever form somebody has them, and whether it is one alone.

    A prompt is a text, a message or a list of messages, or token ids: a list, an array or a tensor.
    The parts of a message are joined.

    Raises:
        ValueError: one is empty, or something else, or a message has no text.
    """
    given = plain(given)
    one = _prompt(given)
    if one is not None:
        return [one], True
    if isinstance(given, str | bytes | Mapping) or not isinstance(given, Iterable):
        raise _no_prompt(given)
    prompts: list[Prompt] = []
    for each in given:
        one = _prompt(each)
        if one is None:
            raise _no_prompt(each)
        prompts.append(one)
    if not prompts:
        raise _no_prompt(())
    return prompts, False


def _prompt(given: Any) -> Prompt | None:
    """What is one prompt, as text, messages or ids; None: it is something else, or several."""
    given = plain(given)
    if isinstance(given, str) and given:
        return given
    if isinstance(given, Mapping) and {"role", "content"} <= given.keys():
        return _messages([given])
    if isinstance(given, Sequence) and not isinstance(given, str | bytes) and given:
        items = [plain(item) for item in given]
        if isinstance(items[0], Mapping):  # what begins with a message is meant as a conversation
            return _messages(items)
        if all(isinstance(item, int) for item in items):
            return items
    return None


def _no_prompt(given: Any) -> ValueError:
    if isinstance(given, Sequence) and not given:
        return ValueError("the prompt is empty: say something to go on from")
    kind = type(given).__name__
    return ValueError(
        f"a prompt is a text, a list of messages or a list of token ids, not of type {kind}"
    )


def has_chat_template(checkpoint: Checkpoint) -> bool:
    """Whether conversations can be put to this model."""
    return bool(getattr(checkpoint.tokenizer, "chat_template", None))


def with_chat_template(checkpoint: Checkpoint, template: str) -> Checkpoint:
    """The checkpoint with this chat template in place of its own."""
    tokenizer = copy.copy(checkpoint.tokenizer)
    tokenizer.chat_template = template
    return dataclasses.replace(checkpoint, tokenizer=tokenizer)


def encode(checkpoint: Checkpoint, text: str, *, control: bool = True) -> list[int]:
    """Token ids of a text, where the mask token's own name is text: masks come from us alone.

    Args:
        control: whether the names of other added tokens stand for them, as a tokenizer reads a
            text of its own; else all of them are text.

    Raises:
        ValueError: the tokenizer cannot write the mask token's name as plain text, or the text is
            no valid UTF-8.
    """
    tokenizer, mask_id = checkpoint.tokenizer, checkpoint.model.mask_id
    mask = str(tokenizer.convert_ids_to_tokens(mask_id))
    names = ControlNames(tokenizer)
    ids: list[int] = []
    for piece in re.split(f"({re.escape(mask)})", text) if control else [text]:
        if piece == mask or not control:
            ids += names.encode(piece)
        elif piece:
            ids += tokenizer(require_characters(piece), add_special_tokens=False)["input_ids"]
    if mask_id in ids:
        raise ValueError(f"the tokenizer cannot write {mask} as plain text: leave it out")
    return ids


def first_ids(checkpoint: Checkpoint) -> list[int]:
    """What every raw prompt begins with: bos where its family has that."""
    bos = checkpoint.tokenizer.bos_token_id
    return [bos] if checkpoint.family.bos and isinstance(bos, int) else []


def last_ids(checkpoint: Checkpoint) -> list[int]:
    """What every raw text with holes ends with: eos where its family has that."""
    eos = checkpoint.tokenizer.eos_token_id
    return [eos] if checkpoint.family.eos and isinstance(eos, int) else []


def encode_chat(
    checkpoint: Checkpoint,
    messages: Messages,
    tools: Messages | None = None,
    *,
    begins_answer: bool = True,
    continues: bool = False,
    variables: Mapping[str, Any] | None = None,
) -> list[int]:
    """Token ids of a conversation in the model's template, up to where the answer begins.

    Args:
        tools: functions that may be called, as OpenAI's `tools` has them.
        begins_answer: what stands before an answer is a part of it.
        continues: the last message stays open, and the answer goes on with it.
        variables: of the template, see `render_chat`.

    Raises:
        ValueError: the model has no chat template, a message lacks its role or content, or the
            template refuses the messages.
    """
    if not has_chat_template(checkpoint):
        raise ValueError("this tokenizer has no chat template: pass the prompt as raw text")
    messages = _messages(messages)
    names = ControlNames(checkpoint.tokenizer)
    hidden, any_name = names.hide(messages)
    hidden_tools, hidden_variables = names.hidden(tools), names.hidden(variables)
    any_name |= hidden_tools != tools or hidden_variables != variables
    rendered = render_chat(
        checkpoint.tokenizer,
        hidden,
        tools=hidden_tools,
        add_generation_prompt=begins_answer and not continues,
        continue_final_message=continues,
        variables=hidden_variables,
    )
    return names.encode_rendered(rendered).ids if any_name else encode(checkpoint, rendered)


def _messages(given: Iterable[Any]) -> list[Mapping[str, Any]]:
    """The messages of a conversation, each with a text."""
    return [_message(number, each) for number, each in enumerate(given, start=1)]


def _message(number: int, message: Any) -> Mapping[str, Any]:
    """A message whose content is text; OpenAI's list of parts is joined."""
    if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
        raise ValueError(
            f"message {number} is no message: each is a mapping with 'role' and 'content'"
        )
    content = message["content"]
    if isinstance(content, Sequence) and not isinstance(content, str):
        texts: list[Any] = [
            part.get("text") if isinstance(part, Mapping) else None for part in content
        ]
        content = "".join(texts) if all(isinstance(text, str) for text in texts) else None
    if not isinstance(content, str):
        raise ValueError(f"the content of message {number} is no text")
    return {**message, "content": content}


class Holed(NamedTuple):
    """A text with holes: its token ids, and the columns of holes that begin with a space."""

    ids: list[int]
    spaced: tuple[int, ...]


def encode_holes(
    checkpoint: Checkpoint,
    text: str,
    *,
    control: bool = True,
    formed: bool = False,
    raw: bool = True,
) -> Holed:
    """Token ids of a text in which `[[n]]` is a hole of n tokens.

    A space before a hole is the hole's to begin with: see `healing.py`.

    Args:
        raw: it is no part of a conversation.
        formed: a form binds all that stands from the first hole to the last; so only the space
            before the first is the hole's.

    Raises:
        ValueError: there is no hole, one of no tokens, or the context cannot hold them.
    """
    pieces = HOLE.split(text)
    # Python reads no number of thousands of digits.
    sizes = [int(size) if len(size) <= MOST_DIGITS else 10**MOST_DIGITS for size in pieces[1::2]]
    if not sizes or min(sizes) < 1:
        raise ValueError("nothing to fill in: mark holes as [[n]], n tokens each, n >= 1")
    context = checkpoint.model.config.max_position_embeddings
    if sum(sizes) > context:  # before there are so many
        raise ValueError(f"the holes have {sum(sizes)} tokens, but the context is {context}")
    ids = first_ids(checkpoint) if raw else []
    spaced = []
    for index, (size, piece) in enumerate(zip(sizes, pieces[:-1:2], strict=True)):
        before, is_spaced = piece, False
        if not (formed and index):
            before, is_spaced = without_space(checkpoint, piece, "".join(pieces[: 2 * index]))
        ids += encode(checkpoint, before, control=control)
        spaced += [len(ids)] if is_spaced else []
        ids += [checkpoint.model.mask_id] * size
    ids += encode(checkpoint, pieces[-1], control=control)
    return Holed(ids + (last_ids(checkpoint) if raw else []), tuple(spaced))


def encode_turn_end(checkpoint: Checkpoint) -> list[int]:
    """The token by which the chat template ends an answer, alone in a list; empty: it has none."""
    turn = [{"role": "user", "content": "."}, {"role": "assistant", "content": "."}]
    ids = encode(checkpoint, render_chat(checkpoint.tokenizer, turn))
    return [token for token in ids if token in checkpoint.end_ids][-1:]


class DecodeStream:
    """What tokens add to a text, one by one; a character of several comes with the last.

    All tokenizers that are loaded write bytes. Those that never become a character are U+FFFD as
    soon as that is known, as in the text of all tokens together.

    Args:
        marks: what stands for some control tokens, which have no text.
    """

    def __init__(self, checkpoint: Checkpoint, marks: Mapping[int, str] | None = None) -> None:
        self._checkpoint, self._marks = checkpoint, marks or {}
        self._silent = frozenset(checkpoint.tokenizer.all_special_ids)
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    @property
    def is_open(self) -> bool:
        """Whether the last token was not the end of a character."""
        return bool(self._utf8.getstate()[0])

    def add(self, token: int) -> str:
        """What a token adds."""
        if token in self._marks:
            return self.rest() + self._marks[token]
        return "" if token in self._silent else self._utf8.decode(self._checkpoint.bytes_of(token))

    def rest(self) -> str:
        """What the tokens of a character that never came whole add, where no more follow."""
        return self._utf8.decode(b"", final=True)


def pieces(checkpoint: Checkpoint, ids: Sequence[int]) -> list[str]:
    """What each token adds to the text; a character of several tokens comes with the last."""
    decoder = DecodeStream(checkpoint)
    parts = [decoder.add(token) for token in ids]
    if decoder.is_open:
        parts[-1] += decoder.rest()
    return parts


def rules_of(checkpoint: Checkpoint, *, infill: bool) -> Rules:
    """What may be written: no masks, nothing the tokenizer does not know; in holes no end."""
    end_ids = checkpoint.end_ids
    # An embedding table is padded beyond the tokenizer (Dream: 152064 rows, 151667 tokens).
    unknown = range(len(checkpoint.tokenizer), checkpoint.model.config.vocab_size)
    suppressed = {checkpoint.model.mask_id, *unknown} | (set(end_ids) if infill else set())
    expand_id = checkpoint.model.config.expand_token_id
    if expand_id is not None:  # where holes keep their length; `Growth.suppressed` lets it in
        suppressed.add(expand_id)
    return Rules(
        suppressed=tuple(sorted(suppressed)),
        end_ids=() if infill else end_ids,
        stop=bool(end_ids) and not infill,
        fill_id=end_ids[0] if end_ids else 0,
        eos_id=checkpoint.tokenizer.eos_token_id,
    )


def decode_answer(
    checkpoint: Checkpoint, ids: Sequence[int], *, infill: bool
) -> tuple[str, list[int]]:
    """Text and tokens before the first end token (an infilling has none of its own)."""
    ids = list(ids)
    if not infill:
        ends = [i for i, token in enumerate(ids) if token in checkpoint.end_ids]
        ids = ids[: ends[0]] if ends else ids
    return checkpoint.decode(ids, skip_special_tokens=True), ids
