"""Training runs of tests: recipes, real processes that are killed, what a run leaves."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import torch
import yaml
from kills import run_until_killed
from processes import ENVIRONMENT, python
from safetensors.torch import load_file

from softmask.config import from_mapping
from softmask.training.config import Recipe

STORIES = [
    f"Once upon a time there was a cat number {i}. It sat on a mat. The end." for i in range(9)
]


def recipe_of(settings: dict, **train_settings) -> Recipe:
    return from_mapping(Recipe, settings | {"train": settings["train"] | train_settings}, "test")


def pretraining(tmp_path: Path) -> dict:
    text = tmp_path / "stories.txt"
    text.write_text("\n<|endoftext|>\n".join(STORIES))
    shape = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 128,
        "vocab_size": 300,
    }
    stages = [
        {"name": "plain", "steps": 4, "soft_probability": 0.0},
        {"name": "soft", "steps": 4, "soft_probability": 1.0},
    ]
    return {
        "name": "pretraining",
        "model": {"shape": shape},
        "soft_mask": {"k": 3, "scale": 0.5, "offset": -1.0, "steepness": 2.0},
        "corpus": {
            "text": [str(text)],
            "puzzle_batch": 4,
            "story_batch": 3,
            "story_length": 24,
        },
        "train": {
            "precision": "float32",
            "learning_rate": 1e-3,
            "warmup": 0,
            "log_every": 1,
            "eval_every": 3,
            "eval_batches": 1,
            "save_every": 3,
            "stages": stages,
        },
    }


def log_of(folder: Path) -> list[dict]:
    """The log without what differs from run to run: the clock."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    kept = [line for line in lines if "train_runtime" not in line]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in kept]


def write_recipe(settings: dict, path: Path) -> Path:
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return path


def command(*words, cwd: Path, **more) -> subprocess.CompletedProcess:
    # What a process sets up before it starts reaches an interpreter of its own alone.
    start = [sys.executable] if "preexec_fn" in more else python()
    return subprocess.run(
        [*start, "-m", "softmask", *map(str, words)],
        cwd=cwd,
        env=ENVIRONMENT,
        capture_output=True,
        encoding="utf-8",
        timeout=600,
        **more,
    )


def equal_tensors(first: Path, second: Path) -> bool:
    one, two = load_file(first), load_file(second)
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


def kill_at(step: int, recipe: Path, folder: Path) -> None:
    """Starts a run and kills it behind the line of an update, at the next one."""
    words = ["train", str(recipe), "--out", str(folder), "--device", "cpu"]
    run_until_killed(words, folder / "log.jsonl", f'"step": {step},', environment=ENVIRONMENT)
