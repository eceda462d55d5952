"""The imports hold the order that docs/STRUCTURE.md draws."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from paths import ROOT

PACKAGE = ROOT / "src" / "softmask"
# Each room with the rooms it may import at module level; a call may import lazily.
ALLOWED = {
    "config": set(),
    "products": set(),
    "readout": {"products"},
    "soft_mask": {"config", "readout"},
    "modeling": {"products", "readout", "soft_mask"},
    "unmask": {"config", "readout"},
    "schedule": {"config", "unmask"},
    "kv_cache": {"config"},
    "text": {"config", "kv_cache", "schedule"},
    "soft_state": {"soft_mask"},
    "sights": {"readout"},
    "graphs": {"modeling", "soft_mask"},
    "batch": {
        *("config", "graphs", "kv_cache", "modeling", "readout", "schedule", "sights"),
        *("soft_mask", "soft_state", "text", "unmask"),
    },
    "sampler": {"batch", "config", "modeling", "soft_mask", "text"},
    "published": {"config", "sampler"},
    "checkpoints": {"config", "modeling", "soft_mask"},
    "quantize": {"modeling", "products"},
    "hub": {"checkpoints", "config", "modeling", "quantize"},
    "prompts": {"hub", "sampler"},
    "generation": {"config", "hub", "prompts", "sampler"},
    "remote_code": set(),
    "export": {"checkpoints", "config", "hub", "remote_code"},
    "push": {"checkpoints", "config", "export"},
    "train_config": {"config"},
    "sources": {"train_config"},
    "conversations": {"config", "sources", "train_config"},
    "footprint": {"config", "kv_cache", "modeling", "readout"},
    "tickets": {"config", "sights", "text"},
    "admission": set(),
    "limits": {*("config", "footprint", "modeling", "sampler", "schedule", "soft_mask", "tickets")},
    "seats": {"admission", "batch", "limits", "sights", "soft_state", "text", "tickets"},
    "engine": {"admission", "config", "limits", "modeling", "seats", "tickets"},
    "noise": set(),
    "objective": {"modeling", "train_config"},
    "sudoku9": set(),
    "puzzles": {"sudoku9"},
    "stories": set(),
    "plan": {"train_config"},
    "corpus": {"plan", "puzzles", "stories", "train_config"},
    "batches": {"corpus", "noise", "plan", "train_config"},
    "recipe": {"config", "train_config"},
    "published_recipe": {"config", "train_config"},
    "sweep": {"train_config"},
    "build": {"config", "corpus", "hub", "modeling", "puzzles", "soft_mask", "train_config"},
    "optimizers": {"plan", "soft_mask", "train_config"},
    "ema": set(),
    "trainer": {
        *("batches", "checkpoints", "config", "ema", "modeling", "objective", "optimizers", "plan"),
        *("soft_mask", "train_config"),
    },
    "curves": set(),
    "run": {
        *("batches", "build", "checkpoints", "config", "conversations", "corpus", "curves"),
        "modeling",
        *("plan", "train_config", "trainer"),
    },
    "measure": set(),
    "result_folder": set(),
    "dense_twin": {"config", "modeling", "products"},
    "floor": {"modeling", "products", "readout"},
    "bench_summary": {"config", "floor", "measure", "modeling", "tables"},
    "benchmark": {
        *("bench_summary", "config", "dense_twin", "floor", "hub", "measure", "modeling"),
        *("result_folder", "sampler"),
    },
    "frontier_cells": set(),
    "frontier_plot": set(),
    "frontier": {
        *("config", "corpus", "demo", "frontier_cells", "frontier_plot", "hub", "measure"),
        *("puzzles", "result_folder", "tables"),
    },
    "eval_config": {"config"},
    "ranks": set(),
    "tables": set(),
    "responses": set(),
    "likelihood": {"config", "modeling", "sampler", "soft_mask"},
    "held_out": {
        *("config", "likelihood", "modeling", "objective", "readout", "soft_mask", "tables"),
    },
    "text_quality": {"checkpoints", "hub", "likelihood", "tables"},
    "harness": {
        *("config", "eval_config", "generation", "hub", "likelihood", "prompts", "ranks"),
        "responses",
    },
    "sandbox_child": set(),
    "sandbox_judge": set(),
    "sandbox_kernel": set(),
    "sandbox": {"sandbox_kernel"},
    "answers": {"puzzles"},
    "tasks": {"answers", "puzzles", "sandbox"},
    "task_data": {"puzzles", "tasks"},
    "record": {"benchmark", "checkpoints", "config", "eval_config", "hub"},
    "evaluation": {
        *("eval_config", "harness", "record", "responses", "tables", "task_data", "tasks"),
    },
    "suites": {"config", "eval_config", "tables"},
    "compare": {"config", "eval_config", "tables"},
    "serve_config": {"config"},
    "openai_api": {"config"},
    "trace": {"config", "engine", "hub", "prompts", "tickets"},
    "text_stream": {"hub", "prompts", "sights", "tickets"},
    "answer_shapes": {"engine", "hub", "text_stream"},
    "serving": {"config", "engine", "hub", "openai_api", "prompts", "serve_config"},
    "metrics": {"engine", "tickets"},
    "gate": {"metrics", "serve_config"},
    "page": set(),
    "ray_serve": {"config", "serve_config"},
    "server": {
        *("answer_shapes", "engine", "gate", "metrics", "openai_api", "page", "serving"),
        *("text_stream", "trace"),
    },
}


def rooms_imported(path: Path, *, nested: bool) -> set[str]:
    """Rooms of this package that a file imports at module level."""
    found: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and node.level:
            inside = nested and node.level == 1
            if not inside:
                names = (
                    [node.module]
                    if node.module
                    else [a.name for a in node.names if a.name != "__version__"]
                )
                found |= {name.split(".")[0] for name in names}
    return found


@pytest.mark.parametrize("room", sorted(ALLOWED))
def test_a_room_imports_only_what_lies_below_it(room: str) -> None:
    folder = PACKAGE / room
    paths = sorted(folder.glob("*.py")) if folder.is_dir() else [PACKAGE / f"{room}.py"]
    assert paths
    for path in paths:
        assert rooms_imported(path, nested=folder.is_dir()) <= ALLOWED[room], path


def test_the_settings_import_no_framework() -> None:
    tree = ast.parse((PACKAGE / "config.py").read_text(encoding="utf-8"))
    modules = {
        n.name for node in ast.walk(tree) if isinstance(node, ast.Import) for n in node.names
    }
    assert not modules & {"torch", "transformers"}
