"""Tokens of grammars in the notation of Lark, without its lexer.

Read are rules and terminals, priorities and aliases (which say nothing here), literals with `i`,
regexes, ranges, groups, `[optional]`, `~ n..m`, `%ignore` and `%import common.NAME`.
"""

import ast
import re

from .forms import EMPTY, Form, alternatives, chars, reference, repeat
from .grammar_parser import OPERATORS, Token, counts_of
from .regex import part_form, regex_form

_TOKEN = re.compile(
    r"""
    (?P<skipped>\s+|//[^\n]*|\#[^\n]*|->[ \t]*\w+)
    |(?P<defined>[?!]{0,2}[A-Za-z_]\w*)(?:\.-?\d+)?[ \t]*:
    |(?P<command>%[^\n]*)
    |(?P<name>[A-Za-z_]\w*)(?![\w{])
    |(?P<low>"(?:[^"\\\n]|\\.)+")\s*\.\.\s*(?P<high>"(?:[^"\\\n]|\\.)+")
    |(?P<literal>"(?:[^"\\\n]|\\.)*")(?P<ignorecase>i?)
    |/(?P<regex>(?:[^/\\\n]|\\.)+)/(?P<flags>[imslux]*)
    |~\s*(?P<least>\d{1,9})(?P<ranged>\s*\.\.\s*(?P<most>\d{1,9}))?
    |(?P<operator>[?*+])
    |(?P<sign>[()\[\]|])
    """,
    re.VERBOSE | re.ASCII,
)
_IMPORT = re.compile(
    r"%import\s+common\s*(?:\.\s*(\w+)(?:\s*->\s*(\w+))?|\(([\w\s,]+)\))\s*(?:(?://|\#).*)?"
)
_FLOAT = r"(?:[0-9]+[eE][+-]?[0-9]+|(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)"
_NUMBER = r"(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?"
# As Lark's module `common` defines them.
_COMMON = {
    "DIGIT": "[0-9]",
    "HEXDIGIT": "[a-fA-F0-9]",
    "INT": "[0-9]+",
    "SIGNED_INT": "[+-]?[0-9]+",
    "DECIMAL": r"(?:[0-9]+\.[0-9]*|\.[0-9]+)",
    "FLOAT": _FLOAT,
    "SIGNED_FLOAT": f"[+-]?{_FLOAT}",
    "NUMBER": _NUMBER,
    "SIGNED_NUMBER": f"[+-]?{_NUMBER}",
    "ESCAPED_STRING": r'"(?:[^"\\\n]|\\[^\n])*"',
    "LCASE_LETTER": "[a-z]",
    "UCASE_LETTER": "[A-Z]",
    "LETTER": "[a-zA-Z]",
    "WORD": "[a-zA-Z]+",
    "CNAME": "[a-zA-Z_][a-zA-Z0-9_]*",
    "WS_INLINE": r"[ \t]+",
    "WS": r"[ \t\f\r\n]+",
    "CR": r"\r",
    "LF": r"\n",
    "NEWLINE": r"(?:\r?\n)+",
}


def lark_rules(source: str) -> tuple[dict[str, list[Token]], dict[str, list[Token]], Form]:
    """The tokens of each rule and of each terminal; what may stand behind each token of a text.

    Raises:
        ValueError: Something is not of the notation, or not supported.
    """
    rules: dict[str, list[Token]] = {}
    ignored: list[Form] = []
    name = ""
    at = 0
    while at < len(source):
        match = _TOKEN.match(source, at)
        if match is None or (not rules and match.lastgroup not in _OUTSIDE):
            where = f"rule {name!r}" if rules else "the grammar"
            text = source[at : at + 20].strip().split("\n")[0]
            raise ValueError(f"{where} has {text!r} where Lark's notation has no such thing")
        at = match.end()
        if match["defined"]:
            name = match["defined"].lstrip("?!")
            _define(rules, name, [])
        elif match["command"]:
            _obey(match["command"].strip(), rules, ignored)
        elif match["skipped"] is None:
            try:
                rules[name].append(_token(match))
            except ValueError as error:
                raise ValueError(f"rule {name!r}: {error}") from None
    behind = repeat(alternatives(*ignored)) if ignored else EMPTY
    terminals = {name: found for name, found in rules.items() if _is_terminal(name)}
    return {name: rules[name] for name in rules.keys() - terminals}, terminals, behind


_BEHIND = re.compile(r"$|//|\#")
_OUTSIDE = ("skipped", "defined", "command")


def _is_terminal(name: str) -> bool:
    return name.isupper()


def _define(rules: dict[str, list[Token]], name: str, tokens: list[Token]) -> None:
    if name in rules:
        raise ValueError(f"rule {name!r} is defined twice")
    rules[name] = tokens


def _obey(command: str, rules: dict[str, list[Token]], ignored: list[Form]) -> None:
    found = _IMPORT.fullmatch(command)
    if found is not None:
        names = [found[1]] if found[1] else [name.strip() for name in found[3].split(",")]
        for name in names:
            if name not in _COMMON:
                raise ValueError(
                    f"{_start(command)}: there is no common.{name}, or it is not supported"
                )
            _define(rules, found[2] or name, [Token(name, form=regex_form(_COMMON[name]))])
        return
    word, _, rest = command.partition(" ")
    if word != "%ignore":
        raise ValueError(f"{_start(command)} is not supported, %ignore and %import common.NAME are")
    rest = rest.strip()
    match = _TOKEN.match(rest)
    behind = "" if match is None else rest[match.end() :].strip()
    if match is None or match["command"] or match["skipped"] or not _BEHIND.match(behind):
        raise ValueError(f"{_start(command)} has to name a terminal, or be a literal or a regex")
    token = _token(match)
    if token.form is None and not token.is_name:
        raise ValueError(f"{_start(command)} has to name a terminal, or be a literal or a regex")
    ignored.append(reference(token.text) if token.form is None else token.form)


def _start(command: str) -> str:
    return repr(command if len(command) <= 40 else f"{command[:37]}...")


def _token(match: re.Match[str]) -> Token:
    text = match[0]
    if match["name"]:
        return Token(text, is_name=True)
    if match["low"]:
        low, high = (_unescaped(match[side]) for side in ("low", "high"))
        if len(low) != 1 or len(high) != 1 or high < low:
            raise ValueError(f"{text} is no range of two characters")
        return Token(text, form=chars([(ord(low), ord(high))]))
    if match["literal"] is not None:
        pattern = re.escape(_unescaped(match["literal"]))
        return Token(text, form=regex_form(f"(?i:{pattern})" if match["ignorecase"] else pattern))
    if match["regex"]:
        flags = "".join(sorted(set(match["flags"]) - {"u"}))
        pattern = match["regex"].replace("\\/", "/")
        # Anchors and lookahead are refused: they see what stands beside the terminal.
        return Token(text, form=part_form(f"(?{flags}:{pattern})" if flags else pattern))
    if match["operator"]:
        return Token(text, counts=OPERATORS[text])
    if match["least"]:
        least = match["least"]
        return Token(text, counts=counts_of(least, match["most"] or least, True))
    return Token(text)


def _unescaped(quoted: str) -> str:
    """A literal's text, whose escapes are Python's."""
    try:
        return str(ast.literal_eval(quoted))
    except SyntaxError:
        raise ValueError(f"{quoted} has an escape that is none") from None
