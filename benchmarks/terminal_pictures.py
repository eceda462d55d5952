"""Screenshots of commands in a terminal of 80 columns, as SVG: a state for each command."""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from terminal import Terminal

TESTS = Path(__file__).parents[1] / "tests"
FORWARD = r"[45]/8 forwards"  # of the demonstration: half of its Sudoku is filled in


@contextlib.contextmanager
def folder_with_chats() -> Iterator[Path]:
    """A tiny chat model and thirty chats: the picture is of the command, not of the model."""
    sys.path.insert(0, str(TESTS))
    from tiny import write_dream_folder

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_dream_folder(folder / "dream", chat=True, max_position_embeddings=1024)
        rows = [
            {"question": f"What is mask number {i}?", "answer": f"Place {i}, still open."}
            for i in range(30)
        ]
        lines = "".join(f"{json.dumps(row)}\n" for row in rows)
        (folder / "support.jsonl").write_text(lines, encoding="utf-8")
        yield folder


def demo(path: Path) -> None:
    with Terminal(["softmask", "demo"], size=(80, 25)) as terminal:
        terminal.wait_for(FORWARD)
        terminal.picture(path, "softmask demo")


def generate(path: Path) -> None:
    words = ["softmask", "generate", "One day, Tom", "--max-new-tokens", "64", "--seed", "7"]
    with Terminal(words) as terminal:
        terminal.finish()
        terminal.picture(path, 'softmask generate "One day, Tom" --max-new-tokens 64 --seed 7')


def train(path: Path) -> None:
    words = "softmask train --model dream --data support.jsonl --iters 120"
    with folder_with_chats() as folder, Terminal(words.split(), cwd=folder) as terminal:
        terminal.wait_for(r"[5-9]\d/120 .*lambda")
        terminal.picture(path, words)


def bench(path: Path) -> None:
    with Terminal(["softmask", "bench"]) as terminal:
        terminal.finish()
        terminal.picture(path, "softmask bench")


STATES: dict[str, Callable[[Path], None]] = {
    "terminal_demo": demo,
    "terminal_generate": generate,
    "terminal_train": train,
    "terminal_bench": bench,
}


def draw(names: Sequence[str], out: Path) -> None:
    """Writes these pictures into a folder."""
    for name in names:
        STATES[name](out / f"{name}.svg")
        print(name, flush=True)
