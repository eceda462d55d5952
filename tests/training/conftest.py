"""Fixtures of training runs: a tiny base, real chats cut short, settings of a recipe on them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from paths import DATA
from tiny import write_dream_folder

from softmask.training import run as run_module

GSM8K = DATA / "gsm8k_sample.jsonl"


@pytest.fixture
def drawn() -> None:
    """For a test of curves: its runs draw them."""


@pytest.fixture(autouse=True)
def _undrawn(request, monkeypatch) -> None:
    """Other runs draw no curves, which take as long as all the rest of a tiny one."""
    if "drawn" not in request.fixturenames:
        monkeypatch.setattr(run_module, "draw_curves", lambda *_: None)


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "dream"
    return write_dream_folder(folder, chat=True, max_position_embeddings=1024)


@pytest.fixture(scope="session")
def chats(tmp_path_factory) -> Path:
    """Forty questions and answers: real ones, cut short, that come several times by number."""
    found = [json.loads(line) for line in GSM8K.read_text().splitlines()]
    rows = [found[i % len(found)] for i in range(40)]
    numbers = [f"{i} " if i >= len(found) else "" for i in range(40)]
    short = [
        {"question": (number + row["question"])[:60], "answer": row["answer"][:40]}
        for number, row in zip(numbers, rows, strict=True)
    ]
    path = tmp_path_factory.mktemp("chats") / "gsm8k.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in short))
    return path


@pytest.fixture
def settings(settings_of, tmp_path) -> dict:
    return settings_of(tmp_path)


@pytest.fixture(scope="session")
def settings_of(base, chats) -> Callable[[Path], dict]:
    """Settings of a run whose rows are cached below a folder."""
    return lambda folder: {
        "name": "tiny",
        "model": {"path": str(base), "dtype": "float32"},
        "adapter": {"r": 4},
        "soft_mask": {"k": 3, "scale": 0.3, "offset": -4.0, "steepness": 1.0},
        "conversations": {
            "sources": [
                {"path": str(chats), "prompt_column": "question", "response_column": "answer"}
            ],
            "validation_samples": 2,
            "extra_padding": 8,
            "cache": str(folder / "cache"),
        },
        "noise": {"t_low": 0.2, "t_high": 0.8, "per_row": False, "floor": 1e-3},
        "train": {
            "precision": "float32",
            "learning_rate": 1e-3,
            "accumulation": 2,
            "steps": 8,
            "log_every": 1,
            "eval_every": 2,
            "save_every": 2,
            "weighting": "published",
        },
    }
