"""Regexes as automata: the texts are those that `re.fullmatch` finds."""

from __future__ import annotations

import re

import numpy as np
import pytest
from automaton_walks import distances, walks
from hypothesis import given, settings
from hypothesis import strategies as st

from softmask.constraints.automaton import ByteAutomaton
from softmask.constraints.compile import compile_constraint
from softmask.constraints.constraint import Constraint

ATOMS = ["a", "b", "é", "😀", ".", r"\d", r"\w", r"\s", r"\D", r"\W", "[a-c]", "[^a]", r"[^\s\d]"]
ATOMS += [r"\.", "[à-ü]", "(?i:ß)", "(?i:k)", "(?i:[^k])", "(?s:.)", "(?a:\\w)", "\\n", ""]
PATTERNS = st.recursive(
    st.sampled_from(ATOMS),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map(lambda pair: f"(?:{pair[0]}|{pair[1]})"),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "{2}", "{1,3}", "{2,}", "*?", "+?"])).map(
            lambda pair: f"({pair[0]}){pair[1]}"
        ),
    ),
    max_leaves=6,
)


def regex(pattern: str) -> ByteAutomaton:
    return compile_constraint(Constraint("regex", pattern))


@settings(max_examples=25)
@given(data=st.data(), pattern=PATTERNS, seed=st.integers(0, 2**32))
def test_a_regex_allows_what_fullmatch_finds(data: st.DataObject, pattern: str, seed: int) -> None:
    automaton = regex(pattern)
    (text,) = walks(automaton, seed, steps=20)
    assert re.fullmatch(pattern, text)
    # A digit is one of ten.
    characters = st.characters(exclude_categories=["Cs", "Nd"], include_characters="0123456789")
    for other in (
        data.draw(st.from_regex(pattern, fullmatch=True, alphabet=characters)),
        data.draw(st.text(alphabet="aké😀K5\n ", max_size=5)),
    ):
        assert automaton.accepts(other.encode()) == bool(re.fullmatch(pattern, other))


@settings(max_examples=30)
@given(pattern=PATTERNS)
def test_an_automaton_is_minimal_and_leads_to_an_end_from_everywhere(pattern: str) -> None:
    automaton = regex(pattern)
    assert automaton.next_SB.dtype == np.int32
    assert automaton.accepting_S.dtype == np.bool_
    assert distances(automaton).min() == 0
    # Moore's refinement, spelled out: states that no text tells apart would share a number.
    table_SC = np.unique(automaton.next_SB, axis=1)
    block_S, blocks = automaton.accepting_S.astype(np.int64), 0
    while blocks < (blocks := len(set(block_S.tolist()))):
        rows = np.column_stack([block_S, np.where(table_SC >= 0, block_S[table_SC], -1)])
        numbers: dict[bytes, int] = {}
        block_S = np.array([numbers.setdefault(row.tobytes(), len(numbers)) for row in rows])
    assert blocks == len(block_S)


@pytest.mark.parametrize(
    ("pattern", "texts"),
    [
        ("^(yes|no)$", ["yes", "no", "yes\n", "no!"]),
        ("(^a|b$)", ["a", "b", "ab"]),
        (r"(?i)straße", ["STRAßE", "strasse", "Straẞe"]),
        (r"(?x) a  b # a comment", ["ab", "a b"]),
        (r"(?=.*\d)(?!.*\s)\w.{2,4}", ["a12", "abc", "a 1", "a1234", "a12345"]),
        (r"(?!^[-+.]*$)[+-]?0*\d*\.?\d*", ["", "+", "-.", "0.5", "-12."]),
        (r"[\ud7ff-\ue000]", ["\ud7ff", "\ue000", "a"]),
        (r"(?!\d+$)\w+", ["\u0663\u0663", "a1"]),
        (r"(?!.*\d).+", ["\u0663", "a"]),
        (r"(?!.*[^\D]).+", ["\u0663", "a"]),
        (r"(?!a$)a\s", ["a\n", "a "]),
        (r"(?!a\Z)a\s", ["a\n", "a "]),
        (r"(?!(?:b|a$))[abc]\n", ["a\n", "b\n", "c\n"]),
        (r"(?=a$)a\s", ["a\n", "a "]),
        (r"(?i)[^a-k\u212a]", ["K", "\u212a", "l", "A"]),
    ],
)
def test_anchors_flags_and_lookahead_mean_what_they_mean_to_re(
    pattern: str, texts: list[str]
) -> None:
    for text in texts:
        assert regex(pattern).accepts(text.encode()) == bool(re.fullmatch(pattern, text)), text


def test_every_text_is_valid_utf8() -> None:
    automaton = regex("(?s:.)")
    assert automaton.accepts("\u0800".encode())
    for data in (b"\xed\xa0\x80", b"\xc0\x80", b"\xe0\x80\x80", b"\xf4\x90\x80\x80", b"\x80"):
        assert not automaton.accepts(data)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (r"(a)\1", "uses a reference to a group"),
        (r"(a)?(?(1)b|c)", "uses a condition on a group"),
        (r"(?<=a)b", "uses lookbehind"),
        (r"(a(?=b))b", "or lookahead that more may follow"),
        (r"\bword", "uses a word boundary"),
        (r"a$b", "uses an anchor that is not at the start or end"),
        (r"(?m)^a$", "uses an anchor that is not at the start or end"),
        (r"a++", "uses a possessive quantifier"),
        (r"(?>a)", "uses an atomic group"),
        (r"(a", "is malformed: missing \\), unterminated subpattern"),
        ("(?\n=a)", "is malformed: unknown extension"),
        (r"a(?!a|b|\n|.).", "contradicts itself"),
    ],
)
def test_what_is_not_regular_is_refused_by_name(pattern: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        regex(pattern)
    assert "\n" not in str(error.value)
