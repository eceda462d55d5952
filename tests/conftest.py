"""Fixtures that several files share: a tiny soft-masked chat model, and puzzles as files."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from tiny import write_dream_folder, write_json

from softmask.config import SoftMaskConfig, soft_mask_to_published
from softmask.puzzles import generate_countdown, generate_sudoku

SOFT = SoftMaskConfig(k=2, scale=0.8, offset=-4.0, steepness=1.0)
# The first eight lines of a file are its shots.
LINES = 8 + 5


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> Path:
    path = write_dream_folder(
        tmp_path_factory.mktemp("model") / "m", chat=True, max_position_embeddings=1024
    )
    write_json(path / "transparency_config.json", soft_mask_to_published(SOFT))
    return path


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """Fresh puzzles in the layout of Dream's evaluation files."""
    folder = tmp_path_factory.mktemp("data") / "planning"
    folder.mkdir()
    rng = random.Random(5)
    for n in (3, 4, 5):
        write_puzzles(
            folder / f"cd{n}_test.jsonl", [generate_countdown(rng, n) for _ in range(LINES)]
        )
    for n in range(4, 13):
        write_puzzles(
            folder / f"sudoku_4x4_{n}.jsonl", [generate_sudoku(rng, n) for _ in range(LINES)]
        )
    return folder.parent


def write_puzzles(path: Path, puzzles) -> None:
    rows = [json.dumps({"input": p.input, "output": p.output}) for p in puzzles]
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
