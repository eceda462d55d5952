"""Grammars: GBNF, which llama.cpp and xgrammar read, and the common part of Lark's notation.

A text is finite and so is an automaton: a rule that stands within itself does so up to a bounded
depth (five, fewer where the rule branches widely; `recursion.py`). Repetition spelled as recursion
at the start or at the end of a rule (`list ::= item | item "," list`) is a loop, without a bound.

Lark's lexer is not followed: a text is of the grammar if some way of cutting it into terminals
is. What `%ignore` names may stand at the start and behind each terminal.
"""

import re

from .forms import Form, sequence
from .gbnf import gbnf_rules
from .grammar_parser import check_names, parsed
from .lark import lark_rules
from .recursion import resolved


def grammar_form(source: str) -> Form:
    """The texts of a grammar: of rule `root` in GBNF (`name ::= ...`), of `start` in Lark.

    Raises:
        ValueError: It is malformed, lacks a rule, or uses what is not supported; the message
            names the rule.
        TooLarge: It takes too many states.
    """
    if re.search(r"^[ \t]*\w[\w.-]*[ \t]*::=", source, re.MULTILINE):
        start, forms = "root", parsed(gbnf_rules(source))
    else:
        start = "start"
        rules, terminals, ignored = lark_rules(source)
        forms = parsed(terminals) | parsed(rules, terminals, ignored)
        if start in forms:
            forms[start] = sequence(ignored, forms[start])
    check_names(forms)
    if start not in forms:
        raise ValueError(f"the grammar has no rule {start!r}, with which a text begins")
    return resolved(start, forms)
