"""Names of control tokens in what people write are text, in training as in decoding.

A tokenizer reads the name of an added token (`<|im_end|>`, `<tool_call>`) as that token wherever it
stands. In the contents of a conversation that would let a text end its own turn. So the contents'
names are hidden from the template and written as text afterwards; the template's own are tokens.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer
    from transformers import PreTrainedTokenizerBase

Message = Mapping[str, Any]


class Encoded(NamedTuple):
    """Token ids, and for each the place in the text where it begins."""

    ids: list[int]
    starts: list[int]


class ControlNames:
    """The names of a tokenizer's added tokens, special or not, and text without them."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        added = tokenizer.added_tokens_decoder.items()
        self.ids = {token.content: index for index, token in added if token.content}
        self._order = list(self.ids)
        self.mask_id: int | None = tokenizer.mask_token_id
        # Longest first: one may begin with another.
        names = sorted(self.ids, key=len, reverse=True)
        self._names = "|".join(map(re.escape, names)) or "(?!)"
        # No template begins with a mask of its own: two texts that stand side by side may make one.
        tokens = [name for name in names if self.ids[name] != self.mask_id]
        self._tokens = "|".join(map(re.escape, tokens)) or "(?!)"
        self._plain = _without_added_tokens(tokenizer)
        # Digits stay what they are in upper case, in JSON, in HTML. Behind them the name's place.
        self._prefix = f"9{secrets.randbelow(10**20):020}"
        self._mark = re.compile(f"{self._prefix}([0-9]{{8}})")

    def hide(self, messages: Sequence[Message]) -> tuple[list[dict[str, Any]], bool]:
        """The messages with a mark in place of each name, roles as they are; whether any was."""
        hidden = [
            {key: value if key == "role" else self.hidden(value) for key, value in m.items()}
            for m in messages
        ]
        return hidden, hidden != [dict(message) for message in messages]

    def show(self, text: str) -> str:
        """A text with the names again in place of their marks."""
        return self._mark.sub(lambda found: self._order[int(found[1])], text)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text in which no name stands for its token.

        Raises:
            ValueError: the text holds half a surrogate pair, which is no character.
        """
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of several texts, in the tokenizer's threads."""
        return [one.ids for one in self._encodings(texts)]

    def encode_rendered(self, rendered: str) -> Encoded:
        """Token ids of a rendered conversation: names in it are tokens, but for the mask's, and
        marks are text.

        Begins count in the shown text.

        Raises:
            ValueError: see `encode`.
        """
        parts = [self.show(part) for part in re.split(f"({self._tokens})", rendered)]
        # Every second part is a name of the template's own.
        encodings = self._encodings(parts[::2])
        ids, starts, place = [], [], 0
        for index, part in enumerate(parts):
            if index % 2:
                ids.append(self.ids[part])
                starts.append(place)
            else:
                encoded = encodings[index // 2]
                ids += encoded.ids
                starts += [place + start for start, _ in encoded.offsets]
            place += len(part)
        return Encoded(ids, starts)

    def _encodings(self, texts: Sequence[str]) -> list[Encoding]:
        # The call for one text keeps all of Python waiting for a long one, this one does not.
        checked = [require_characters(text) for text in texts]
        return self._plain.encode_batch(checked, add_special_tokens=False)

    def _marked(self, found: re.Match[str]) -> str:
        return f"{self._prefix}{self._order.index(found[0]):08}"

    def hidden(self, value: Any) -> Any:
        """A value with a mark in place of each name in its texts, which may lie at any depth."""
        if isinstance(value, str):
            return re.sub(self._names, self._marked, value)
        if isinstance(value, Mapping):
            return {self.hidden(key): self.hidden(part) for key, part in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.hidden(part) for part in value]
        return value


def require_characters(text: str) -> str:
    """The text.

    Raises:
        ValueError: it holds half a surrogate pair, as bytes that are no UTF-8 leave behind.
    """
    place = half_character(text)
    if place is not None:
        raise ValueError(
            f"the text is no valid UTF-8: {text[place]!r} at character {place} is half a character"
        )
    return text


def half_character(text: str) -> int | None:
    """Where a text holds half a surrogate pair first; None: it is all characters."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return error.start
    return None


def _without_added_tokens(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """The same model, normalizer and pre-tokenizer; nothing is copied."""
    from tokenizers import Tokenizer

    backend = tokenizer.backend_tokenizer
    plain = Tokenizer(backend.model)
    for part in ("normalizer", "pre_tokenizer"):
        if (value := getattr(backend, part)) is not None:
            setattr(plain, part, value)
    return plain
