"""Tokens of grammars in GBNF, as llama.cpp and xgrammar write them."""

import re

from .forms import LAST_CHARACTER, Form, chars, literal, outside
from .grammar_parser import OPERATORS, Token, counts_of

_TOKEN = re.compile(
    r"""
    (?P<skipped>\s+|\#[^\n]*)
    |(?P<defined>\w[\w.-]*)\s*::=
    |(?P<name>\w[\w.-]*)
    |"(?P<literal>(?:[^"\\\n]|\\.)*)"
    |\[(?P<class>(?:[^\]\\\n]|\\.)*)\]
    |\{\s*+(?P<least>\d{0,9})\s*+(?P<comma>,?)\s*+(?P<most>\d{0,9})\s*+\}
    |(?P<operator>[?*+])
    |(?P<dot>\.)
    |(?P<sign>[()|])
    """,
    re.VERBOSE | re.ASCII,
)
_CHARACTER = re.compile(
    r"\\x([0-9a-fA-F]{2})|\\u([0-9a-fA-F]{4})|\\U([0-9a-fA-F]{8})|\\(.)|(.)", re.DOTALL
)
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "b": "\b", "f": "\f", "v": "\v", "0": "\0"}


def gbnf_rules(source: str) -> dict[str, list[Token]]:
    """The tokens of each rule.

    Raises:
        ValueError: Something is no token of GBNF, or a rule is defined twice.
    """
    rules: dict[str, list[Token]] = {}
    name = ""
    at = 0
    while at < len(source):
        match = _TOKEN.match(source, at)
        if match is None or (not rules and match.lastgroup not in ("skipped", "defined")):
            where = f"rule {name!r}" if rules else "the grammar"
            text = source[at : at + 20].split("\n")[0]
            raise ValueError(f"{where} has {text!r} where GBNF has no such thing")
        at = match.end()
        if match["defined"]:
            name = match["defined"]
            if name in rules:
                raise ValueError(f"rule {name!r} is defined twice")
            rules[name] = []
        elif match["skipped"] is None:
            try:
                rules[name].append(_token(match))
            except ValueError as error:
                raise ValueError(f"rule {name!r}: {error}") from None
    return rules


def _token(match: re.Match[str]) -> Token:
    text = match[0]
    if match["name"]:
        return Token(text, is_name=True)
    if match["literal"] is not None:
        return Token(text, form=literal("".join(one for one, _ in _characters(match["literal"]))))
    if match["class"] is not None:
        return Token(text, form=_class(match["class"]))
    if match["dot"]:
        return Token(text, form=chars([(0, LAST_CHARACTER)]))
    if match["operator"]:
        return Token(text, counts=OPERATORS[text])
    if match["sign"]:
        return Token(text)
    return Token(text, counts=counts_of(match["least"], match["most"], bool(match["comma"])))


def _characters(text: str) -> list[tuple[str, bool]]:
    """Characters behind their escapes, and whether each was written plainly."""
    found = []
    for two, four, eight, escaped, plain in _CHARACTER.findall(text):
        if plain:
            found.append((plain, True))
        elif escaped:
            found.append((_ESCAPES.get(escaped, escaped), False))
        else:
            code = int(two or four or eight, 16)
            if code > LAST_CHARACTER:
                raise ValueError(f"there is no character of number {code:x}")
            found.append((chr(code), False))
    return found


def _class(text: str) -> Form:
    """One character of `[a-z]`, or one that is not of `[^a-z]`."""
    negated = text.startswith("^")
    found = _characters(text[negated:])
    ranges: list[tuple[int, int]] = []
    at = 0
    while at < len(found):
        low = high = ord(found[at][0])
        if at + 2 < len(found) and found[at + 1] == ("-", True):
            high = ord(found[at + 2][0])
            if high < low:
                raise ValueError(f"[{text}] has a range that ends before it begins")
            at += 2
        ranges.append((low, high))
        at += 1
    return chars(outside(ranges) if negated else ranges)
