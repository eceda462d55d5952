"""Grammars as automata: GBNF and the common part of Lark."""

from __future__ import annotations

import json

import pytest
from automaton_walks import walks

from softmask.constraints.automaton import ByteAutomaton
from softmask.constraints.compile import compile_constraint
from softmask.constraints.constraint import Constraint

IMPORTS = """
start: WORD NUMBER
%import common (WORD, NUMBER)
%import common.WS # of all kinds
%ignore WS # between words
"""


def grammar(source: str) -> ByteAutomaton:
    return compile_constraint(Constraint("grammar", source))


# As llama.cpp writes JSON.
JSON = r"""
root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws
object ::=
  "{" ws (
            string ":" ws value
    ("," ws string ":" ws value)*
  )? "}" ws
array  ::= "[" ws ( value ("," ws value)* )? "]" ws
string ::=
  "\"" (
    [^"\\\x7F\x00-\x1F] |
    "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) # escapes
  )* "\"" ws
number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? ws
# Optional space
ws ::= | " " | "\n" [ \t]{0,20}
"""
ARITHMETIC = """
    ?start: sum
    ?sum: product | sum "+" product -> add | sum "-" product -> sub
    ?product: atom | product "*" atom -> mul
    ?atom: NUMBER -> number | "-" atom | NAME | "(" sum ")"
    %import common.CNAME -> NAME
    %import common.NUMBER
    %import common.WS_INLINE
    %ignore WS_INLINE
"""
# Terminals with priorities, flags, counts and ranges.
QUERY = r"""
    start: "select"i COLS ["where"i cond]   // a comment
    COLS.2: /[a-z]+(,[a-z]+)*/
    cond: NAME "=" VALUE ~ 1..2 | NAME "in" VALUE~3
    NAME: ("a".."c")+
    VALUE: /\d|\/X/i
    %ignore " "
"""


@pytest.mark.parametrize(
    ("source", "allowed", "refused"),
    [
        ('root ::= "yes" | "no"', ["yes", "no"], ["", "yesno"]),
        ('root ::= "a"{2,3} [^b-y]? .', ["aa\n", "aaaé", "aazé"], ["aab ", "aaaaaa"]),
        (r'root ::= "\x41\u00e9\U0001F600\"" [\]\-^]', ['Aé😀"]', 'Aé😀"^'], ["A"]),
        ('root ::= 2nd\n2nd ::= "a"', ["a"], ["2nd"]),
        (IMPORTS, ["ab 1", "a1"], ["1", "ab"]),
        ("start: A\n%import common.SIGNED_FLOAT -> A", ["-1.5", "+2e3", ".5"], ["1", "-"]),
        ('root ::= a-b? | ("x" a-b)+\na-b ::= "1"', ["", "1", "x1x1"], ["11"]),
        (JSON, ['{"a": [1, {"b": null}]}', '{"k":-1.5e3}'], ["[]", '{"a":}', '{"a":01}']),
        (ARITHMETIC, ["1 + 2*x", " (1+2) * -3", "1-1-1-1-1-1-1-1"], ["1 +", "1 2", ""]),
        (
            QUERY,
            [
                "SELECT a,b where a = 1",
                "select a",
                "select aWHERE b=/x2",
                "select a where b in 111",
            ],
            ["select", "select a where d=1", "select a where b=123"],
        ),
    ],
    ids=[
        *("choice", "counts", "escapes", "digit", "imports", "signed", "names"),
        *("json", "arithmetic", "query"),
    ],
)
def test_a_grammar_allows_its_texts(source: str, allowed: list[str], refused: list[str]) -> None:
    automaton = grammar(source)
    assert [text for text in allowed if not automaton.accepts(text.encode())] == []
    assert [text for text in refused if automaton.accepts(text.encode())] == []


def test_what_a_grammar_of_json_allows_is_json() -> None:
    for text in walks(grammar(JSON), seed=1, count=20, steps=300):
        assert isinstance(json.loads(text), dict)


@pytest.mark.parametrize(
    "source",
    [
        'root ::= item | item "," root\nitem ::= [a-z]+',
        'root ::= item | root "," item\nitem ::= [a-z]+',
        'root ::= root "," root | [a-z]+',
        'root ::= list\nlist ::= item rest\nrest ::= "," list | ""\nitem ::= [a-z] | item [a-z]',
        'start: item | start "," item\nitem: /[a-z]+/',
    ],
)
def test_repetition_spelled_as_recursion_has_no_bound(source: str) -> None:
    automaton = grammar(source)
    assert len(automaton.accepting_S) == 2
    assert automaton.accepts(",".join(["ab"] * 100).encode())
    assert not automaton.accepts(b"a,,b")


def test_a_rule_within_itself_is_bounded_in_depth() -> None:
    automaton = grammar('root ::= "(" root ")" | "x"')
    for depth in range(8):
        assert automaton.accepts(b"(" * depth + b"x" + b")" * depth) == (depth <= 5)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("root ::= x y", "rule 'root' refers to 'x', which is not defined"),
        ('root ::= "a" )', r"rule 'root': '\)' is not expected there"),
        ('root ::= ("a"', r"rule 'root': a '\(' is not closed"),
        ('root ::= "a', "rule 'root' has '\"a' where GBNF has no such thing"),
        ("root ::= [z-a]", "rule 'root': .* ends before it begins"),
        (r'root ::= "\U00110000"', "rule 'root': there is no character of number 110000"),
        ('root ::= * "a"', r"rule 'root': '\*' is not expected there"),
        ('root ::= "a"\nroot ::= "b"', "rule 'root' is defined twice"),
        ('foo ::= "a"', "has no rule 'root'"),
        ('root ::= "a" root', "contradicts itself"),
        ("a: /b/", "has no rule 'start'"),
        ("start: foo{x}", "rule 'start' has 'foo{x}' where Lark"),
        ("start: /(?<=a)b/", "rule 'start': the regex .* or lookbehind, which sees beyond"),
        ('start: X "b"\nX: /a(?!b)/', "rule 'X': the regex .* uses lookahead or"),
        ('start: X "b"\nX: /a$/', "rule 'X': the regex .* uses an anchor, which sees beyond"),
        ('root ::= "a"{3,2}', "rule 'root': a repeat of 3 to 2 allows nothing"),
        ('root ::= "a"{}', "rule 'root': a repeat says no number"),
        ('start: "a"~3..2', "rule 'start': a repeat of 3 to 2 allows nothing"),
        ("start: A\n%declare A", "'%declare A' is not supported"),
        ("start: A\n%import common.FOO", "there is no common.FOO"),
        ("%ignore (", "has to name a terminal"),
        ("hello", "the grammar has 'hello' where"),
        ("", "has no rule 'start'"),
    ],
)
def test_a_malformed_grammar_is_refused_with_its_rule(source: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        grammar(source)
    assert "\n" not in str(error.value)
