"""Which names of a test are the program's, and which are modules of our own.

Beside the judge and on its side: the candidate's process never loads this file.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import symtable
import sys
from collections.abc import Iterable

_ALIASES = {"np": "numpy", "numpy": "numpy"}


def free_names(test: str) -> tuple[list[str], list[str]]:
    """The names that a test loads and neither defines nor finds among the builtins.

    First those that are to come from the program, then modules. A module is what the test only
    ever takes attributes of, under the name of one: `sys.getsizeof(...)` without an import means
    the module, whatever a program makes of the name. Where no name is left for the program, the
    tested function has the name of a builtin (MBPP has a `sum`): then it is the builtins that the
    test's own statements load, outside of its functions. Raises SyntaxError.
    """
    top = symtable.symtable(test, "<test>", "exec")
    outer = {s.get_name() for s in top.get_symbols() if s.is_referenced() and not _is_bound(s)}
    bound = {s.get_name() for s in top.get_symbols() if _is_bound(s)}
    free = (outer | (_globals_of(top) - bound)) - set(dir(builtins))
    modules = free & (sys.stdlib_module_names | _ALIASES.keys()) - _used_alone(test)
    wanted = free - modules or outer - modules
    return sorted(wanted), sorted(modules)


def own_modules(names: Iterable[str]) -> dict[str, object]:
    """The modules of `free_names`. Raises ImportError."""
    return {name: importlib.import_module(_ALIASES.get(name, name)) for name in names}


def _is_bound(symbol: symtable.Symbol) -> bool:
    return symbol.is_assigned() or symbol.is_imported()


def _globals_of(table: symtable.SymbolTable) -> set[str]:
    found = set()
    for inner in table.get_children():
        found |= {s.get_name() for s in inner.get_symbols() if s.is_global()} | _globals_of(inner)
    return found


def _used_alone(test: str) -> set[str]:
    """The names that stand somewhere for themselves, and not before a dot."""
    tree = list(ast.walk(ast.parse(test)))
    owners = {id(node.value) for node in tree if isinstance(node, ast.Attribute)}
    return {n.id for n in tree if isinstance(n, ast.Name) and id(n) not in owners}
