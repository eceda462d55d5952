"""remote_code(): this package's own modelling, soft-mask and generation files, laid flat.

transformers loads code beside a checkpoint from one folder, so every relative import has to
point there. Nothing is kept in two copies: the files are rewritten when they are exported.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path

from .. import __version__

PACKAGE = Path(__file__).parents[1]
# The remote code is these and whatever they import from this package.
CONFIGURATION = "models/configuration_dream.py"
MODEL = "models/modeling_dream.py"
# Imported behind the model, to which it gives its method.
METHOD = "decoding/diffusion_generate.py"
# How each file of it begins; by this an export is known again.
CODE_MARK = "# Part of softmask "


def is_own_code(path: Path) -> bool:
    """Whether an export of ours wrote this file of code."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.readline().startswith(CODE_MARK.encode())


def remote_code() -> dict[str, str]:
    """The text of every file of remote code, by its name in the flat folder.

    They are this package's own files. Only their relative imports change: to the same folder.
    """
    waiting, code = [CONFIGURATION, MODEL, METHOD], {}
    while waiting:
        path = PACKAGE / waiting.pop(0)
        if path.name in code:
            continue
        text, needed = _flatten(path)
        code[path.name] = (
            f"{CODE_MARK}{__version__} (Apache-2.0), written by `softmask export`.\n{text}"
        )
        waiting += needed
    model, method = Path(MODEL).name, Path(METHOD).stem
    code[model] += (
        "\n\n# As in Dream's own code, row i of a plain call predicts position i + 1.\n"
        "DreamModel.aligned_logits = False\n"
    )
    code[model] += f"\n\nfrom .{method} import {method}  # noqa: E402, F401, the model's method\n"
    code[model] += _name_siblings(code, model)
    return code


def _flatten(path: Path) -> tuple[str, list[str]]:
    """A file of the package with flat imports, and the files that it imports.

    What is imported for annotations alone is left out: nobody checks types there.
    """
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    tree = ast.parse(text)
    nodes = [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.level]
    needed: list[str] = []
    for block in [n for n in tree.body if isinstance(n, ast.If)]:
        assert ast.unparse(block.test) == "TYPE_CHECKING", f"{path.name}: an if around imports"
        for node in block.body:
            if node in nodes:
                nodes.remove(node)
                lines[node.lineno - 1] = "    pass"
                lines[node.lineno : node.end_lineno] = [""] * ((node.end_lineno or 0) - node.lineno)
    for node in sorted(nodes, key=lambda n: n.lineno, reverse=True):
        homes = _homes(path, node)
        needed += homes.values()
        flat = []
        for home in dict.fromkeys(homes.values()):
            names = [ast.unparse(a) for a in node.names if homes[a.name] == home]
            flat.append(f"{' ' * node.col_offset}from .{Path(home).stem} import {', '.join(names)}")
        lines[node.lineno - 1 : node.end_lineno] = flat
    return "\n".join(lines) + "\n", sorted(set(needed))


def _homes(path: Path, node: ast.ImportFrom) -> dict[str, str]:
    """The file of this package, as a path in it, that each imported name comes from."""
    folder = path.parents[node.level - 1]
    assert node.module, f"{path.name}: import names from a module, not modules"
    place = folder.joinpath(*node.module.split("."))
    if place.with_suffix(".py").is_file():
        file = place.with_suffix(".py").relative_to(PACKAGE).as_posix()
        return {alias.name: file for alias in node.names}
    # A package: its __init__ says where a name lives.
    inside = place / "__init__.py"
    homes: dict[str, str] = {}
    for child in ast.parse(inside.read_text(encoding="utf-8")).body:
        if isinstance(child, ast.ImportFrom) and child.level:
            homes |= _homes(inside, child)
    return {alias.name: homes[alias.name] for alias in node.names}


def _name_siblings(code: Mapping[str, str], own: str) -> str:
    """A tail that never runs and names every other file.

    Before it imports a model, transformers copies the files that the text of this one names;
    some versions follow their imports in turn, and some do not (finding B16).
    """
    siblings = sorted(Path(file).stem for file in code if file != own)
    imports = [f"    from .{sibling} import *  # noqa: F403" for sibling in siblings]
    head = "# Never runs: it names the files that transformers must copy along with this one."
    guard = "if TYPE_CHECKING:"
    return "\n".join(["", "", "from typing import TYPE_CHECKING", "", head, guard, *imports, ""])
