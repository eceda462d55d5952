"""What GBNF and Lark have in common: rules of tokens, parsed to forms."""

import dataclasses
from collections.abc import Collection, Mapping

from .forms import (
    EMPTY,
    Form,
    Repeat,
    Sequence,
    TooLarge,
    alternatives,
    optional,
    reference,
    repeat,
    sequence,
)


@dataclasses.dataclass(frozen=True)
class Token:
    """A piece of a rule.

    Attributes:
        text: As it stands in the grammar: one of `( ) [ ] |`, a name, or what `form` was read of.
        form: What a literal, a class or a regex allows.
        counts: How often the piece before it stands (None: without end).
    """

    text: str
    is_name: bool = False
    form: Form | None = None
    counts: tuple[int, int | None] | None = None


OPERATORS: Mapping[str, tuple[int, int | None]] = {"?": (0, 1), "*": (0, None), "+": (1, None)}


def counts_of(least: str, most: str, ranged: bool) -> tuple[int, int | None]:
    """The counts of `{m}`, `{m,}`, `{,n}`, `{m,n}`.

    Raises:
        ValueError: There is no number, or the least is more than the most.
    """
    if not (least or most):
        raise ValueError("a repeat says no number: give at least one")
    low = int(least or 0)
    if ranged and most and int(most) < low:
        raise ValueError(f"a repeat of {low} to {most} allows nothing: swap them")
    return low, (int(most) if most else None) if ranged else low


def parsed(
    rules: Mapping[str, list[Token]], terminals: Collection[str] = (), behind: Form = EMPTY
) -> dict[str, Form]:
    """The form of each rule; `behind` stands behind each terminal, named or written there.

    Raises:
        ValueError: A rule is malformed.
        TooLarge: A rule takes too many states.
    """
    forms = {}
    for name, tokens in rules.items():
        parser = _Parser(tokens, terminals, behind)
        try:
            forms[name] = parser.rule()
        except TooLarge as error:
            raise TooLarge(f"rule {name!r}: {error}") from None
        except ValueError as error:
            raise ValueError(f"rule {name!r}: {error}") from None
    return forms


def check_names(forms: Mapping[str, Form]) -> None:
    """Refuses rules that refer to one that is not there.

    Raises:
        ValueError: One does.
    """
    for name, form in forms.items():
        for missing in sorted(form.names - forms.keys()):
            raise ValueError(f"rule {name!r} refers to {missing!r}, which is not defined")


class _Parser:
    def __init__(self, tokens: list[Token], terminals: Collection[str], behind: Form) -> None:
        self._tokens = tokens
        self._at = 0
        self._terminals = terminals
        self._behind = behind

    def rule(self) -> Form:
        form = self._alternatives()
        if self._at < len(self._tokens):
            raise ValueError(f"{self._tokens[self._at].text!r} is not expected there")
        return form

    def _alternatives(self) -> Form:
        options = [self._sequence()]
        while self._is("|"):
            self._at += 1
            options.append(self._sequence())
        return alternatives(*options)

    def _is(self, *signs: str) -> bool:
        if self._at == len(self._tokens):
            return False
        token = self._tokens[self._at]
        return token.form is None and not token.is_name and token.text in signs

    def _sequence(self) -> Form:
        parts: list[Form] = []
        while self._at < len(self._tokens) and not self._is("|", ")", "]"):
            part = self._piece()
            while self._at < len(self._tokens):
                counts = self._tokens[self._at].counts
                if counts is None:
                    break
                part = repeat(part, *counts)
                self._at += 1
            parts += part.parts if isinstance(part, Sequence) else (part,)
            _gather(parts)
        return sequence(*parts)

    def _piece(self) -> Form:
        token = self._tokens[self._at]
        self._at += 1
        if token.form is not None:
            return sequence(token.form, self._behind)
        if token.is_name:
            found = reference(token.text)
            return sequence(found, self._behind) if token.text in self._terminals else found
        if token.text not in ("(", "["):
            raise ValueError(f"{token.text!r} is not expected there")
        inner = self._alternatives()
        closing = ")" if token.text == "(" else "]"
        if not self._is(closing):
            raise ValueError(f"a {token.text!r} is not closed")
        self._at += 1
        return inner if closing == ")" else optional(inner)


def _gather(parts: list[Form]) -> None:
    """Reads `item ("," item)*` at the end as one repeat of the item with a separator.

    Rules within themselves would else take two copies of the item at each level.
    """
    last = parts[-1] if parts else EMPTY
    if not isinstance(last, Repeat) or last.separator is not EMPTY:
        return
    again = last.part.parts if isinstance(last.part, Sequence) else (last.part,)
    shared = 0
    for one, other in zip(reversed(parts[:-1]), reversed(again), strict=False):
        if not _same(one, other):
            break
        shared += 1
    if shared:
        item, separator = sequence(*again[-shared:]), sequence(*again[:-shared])
        most = None if last.most is None else last.most + 1
        parts[-1 - shared :] = [repeat(item, last.least + 1, most, separator)]


def _same(one: Form, other: Form) -> bool:
    """Whether two forms are written alike."""
    if type(one) is not type(other) or one.size != other.size or one.names != other.names:
        return False
    for field in dataclasses.fields(one):
        ours, theirs = (getattr(form, field.name) for form in (one, other))
        pairs = zip(ours, theirs, strict=False) if isinstance(ours, tuple) else [(ours, theirs)]
        if isinstance(ours, tuple) and len(ours) != len(theirs):
            return False
        for our, their in pairs:
            if not (_same(our, their) if isinstance(our, Form) else our == their):
                return False
    return True
