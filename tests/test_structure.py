"""The rooms: imports run downwards only and in no circle, those inside functions counted."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from graphlib import TopologicalSorter
from itertools import pairwise
from pathlib import Path

import pytest
from paths import ROOT

import softmask

PACKAGE = ROOT / "src" / "softmask"
# Each may import those before it, never those behind it.
ROOMS = [
    *(
        "settings",
        "rule_inputs",
        "rules",
        "shipped_rules",
        "sampling",
        "config",
        "families",
        "files",
        "row_files",
        "constraints",
        "launcher",
        "logits",
        "mixtures",
        "soft_mask",
        "reporting",
        "models",
        "decoding",
        "hub",
        "puzzles",
    ),
    *("training", "serving", "evaluation", "bench", "cli", "tracing"),
]
FILES = sorted(
    path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or path.stem in ROOMS
)


def imported(path: Path) -> set[Path]:
    """The files of this package that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = path.parents[node.level - 1].joinpath(*(node.module or "").split("."))
            for alias in node.names:
                places = [base / f"{alias.name}.py", base / alias.name / "__init__.py"]
                places += [base.with_suffix(".py"), base / "__init__.py"]
                found.add(next(place for place in places if place.is_file()))
    return found


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_text_files_have_an_encoding_whatever_the_system_prefers() -> None:
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                names = [keyword.arg for keyword in node.keywords]
                is_text = node.func.attr in ("read_text", "write_text")
                assert not is_text or "encoding" in names, f"{path.name}:{node.lineno}"


def test_every_folder_and_file_of_the_package_is_a_room() -> None:
    places = {room_of(path) for path in PACKAGE.rglob("*.py")}
    assert places == {*ROOMS, "__init__", "__main__"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_room_imports_only_those_before_it(path: Path) -> None:
    behind = ROOMS[ROOMS.index(room_of(path)) + 1 :]
    # The version stands in the package itself.
    others = {room_of(other) for other in imported(path)} - {"__init__"}
    assert not others & set(behind)


def test_no_file_imports_itself_by_way_of_others() -> None:
    # A package's own __init__ is what its folder offers, and may import from it.
    graph = {path: imported(path) for path in FILES}
    assert list(TopologicalSorter(graph).static_order())


def test_each_room_says_what_lives_there_what_it_imports_and_where_to_begin() -> None:
    for room in ROOMS:
        if (PACKAGE / room).is_dir():
            text = (PACKAGE / room / "__init__.py").read_text(encoding="utf-8")
            assert len((ast.get_docstring(ast.parse(text)) or "").splitlines()) == 3, room


def test_what_reads_types_finds_every_public_name_where_it_is_imported_from() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    froms = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level]
    # `as` says that the name is meant for others: without it mypy --strict hides it.
    homes = {alias.asname: node.module for node in froms for alias in node.names}
    assert homes == softmask._HOME
    assert all(alias.name == alias.asname for node in froms for alias in node.names)


USERS_FILE = """
import softmask
from torch import Tensor


@softmask.commit_rule("cautious")
def cautious(rows: softmask.MaskedRows, *, left: float = 0.1) -> Tensor:
    likeliest_N: Tensor = rows.probability_N - left * rows.block_position_N
    return likeliest_N


checkpoint = softmask.load()
reveal_type(checkpoint)
softmask.laod()
"""
# What stands in for a package that was installed; the frameworks' types take mypy a minute.
USERS_MYPY = """
[mypy]
strict = true
follow_imports = silent
ignore_missing_imports = true
[mypy-torch.*,transformers.*,numpy.*,huggingface_hub.*,tokenizers.*,safetensors.*]
follow_imports = skip
"""


@pytest.mark.long
def test_a_users_program_is_checked_with_the_types_of_the_package(tmp_path) -> None:
    (tmp_path / "program.py").write_text(USERS_FILE)
    (tmp_path / "mypy.ini").write_text(USERS_MYPY)
    command = [sys.executable, "-m", "mypy", "--config-file=mypy.ini", "program.py"]
    environment = os.environ | {"MYPYPATH": str(PACKAGE.parent)}
    said = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    *notes, _summary = said.stdout.splitlines()
    assert notes == [
        'program.py:13: note: Revealed type is "softmask.models.checkpoint.Checkpoint"',
        'program.py:14: error: Module has no attribute "laod"  [attr-defined]',
    ]


def test_the_settings_import_no_framework() -> None:
    for name in ("config.py", "sampling.py"):
        tree = ast.parse((PACKAGE / name).read_text(encoding="utf-8"))
        nodes = (node for node in ast.walk(tree) if isinstance(node, ast.Import))
        modules = {one.name for node in nodes for one in node.names}
        assert not modules & {"torch", "transformers"}


def test_the_document_draws_the_rooms_in_their_order() -> None:
    text = (ROOT / "docs" / "STRUCTURE.md").read_text(encoding="utf-8")
    places = [text.index(f"`{room}") for room in ROOMS]
    assert all(a < b for a, b in pairwise(places))


def test_the_document_names_every_file() -> None:
    text = (ROOT / "docs" / "STRUCTURE.md").read_text(encoding="utf-8")
    # A command's file has its command's name; tasks and the sandbox say themselves what they hold.
    own = [p for p in FILES if room_of(p) != "cli" and p.parent.name not in ("tasks", "sandbox")]
    assert not [path for path in own if path.stem != "__init__" and path.name not in text]
