"""What one model knows of held-out text, writes, and fills in: one JSON file.

    python benchmarks/evidence/score_text.py MODEL OUT.json --text HELD_OUT.txt --scorer FOLDER

* nats a token of every window, on the same masks for every model: without feedback, with that of
  the same masks (fresh), with that of one step earlier (stale);
* samples that go on from 16 tokens of windows that lie evenly in it, ancestrally (random order, at
  --temperature), in as many steps as tokens, half and a quarter: perplexity by a model that is not
  ours, entropy, repetition;
* lines of 3 to 12 tokens, indentation included, filled in greedily between what stands around them;
* with --gsm8k: its problems, asked as `words.py` writes them, answered in 128 tokens, block-wise.

All of this with the model's feedback as it is, off, and shuffled among positions (--modes). What is
known is printed as it comes, so that a run that is stopped has not been in vain.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from common import FEWER, evenly
from score_puzzles import shuffled_feedback
from words import asked, read

from softmask.config import FEEDBACK_PRESETS, SamplingConfig, SoftMaskConfig
from softmask.decoding.generation import Completion, Generation, choose_soft_mask
from softmask.evaluation.held_out import held_out, windows
from softmask.evaluation.measure_config import HeldOutConfig
from softmask.evaluation.text_quality import Scored, Scorer, quality
from softmask.hub.load import load
from softmask.models.checkpoint import Checkpoint
from softmask.puzzles.solve import ALG
from softmask.puzzles.stories import split_stories

LENGTH, PROMPT, BATCH = 128, 16, 32
MASKS = HeldOutConfig(length=LENGTH, times=16)
STEPS = {name: fewer for name, fewer in FEWER.items() if fewer <= 4}
TOKENS = range(3, 13)
# Of feedback, as a table names them below an arm.
MODES = {"own": "{}", "off": "    feedback off", "shuffled": "    feedback shuffled"}
ANSWER, BLOCK = 128, 32
NUMBER = re.compile(r"#### *(-?[\d,.]*\d)")


class Line(NamedTuple):
    """A line and what stands around it."""

    before: str
    line: str
    after: str
    tokens: int


def whole_windows(checkpoint: Checkpoint, texts: Sequence[str]) -> list[list[int]]:
    """All windows of LENGTH tokens, without the rests of documents."""
    every = windows(checkpoint.tokenizer, texts, LENGTH)
    return [window for window in every if len(window) == LENGTH]


def lines_of(checkpoint: Checkpoint, cut: Sequence[Sequence[int]]) -> Iterator[Line]:
    """The first fitting line in the middle of each window."""
    tokenizer = checkpoint.tokenizer
    for window in cut:
        lines = tokenizer.decode(window).split("\n")
        middle = range(len(lines) // 3, len(lines) - 1)
        for i in middle:
            count = len(tokenizer(lines[i])["input_ids"])
            if lines[i].strip() and count in TOKENS:
                before, after = "\n".join([*lines[:i], ""]), "\n".join(["", *lines[i + 1 :]])
                if "[[" not in before + after:
                    yield Line(before, lines[i], after, count)
                    break


@dataclass(frozen=True)
class Decoder:
    """A model in one way of decoding: with so many times fewer steps than masks."""

    checkpoint: Checkpoint
    fewer: int
    soft: SoftMaskConfig | None
    rows: int  # texts side by side
    temperature: float = 1.0  # of samples

    def completions(
        self, prompts: Sequence[str], masks: int, sampling: dict[str, Any], **how: Any
    ) -> Iterator[Completion]:
        """One for every prompt, each with `masks` masks; `how`: further arguments of Generation."""
        steps = math.ceil(masks / self.fewer)
        for start in range(0, len(prompts), self.rows):
            run = Generation(
                self.checkpoint,
                prompts[start : start + self.rows],
                max_new_tokens=masks,
                sampling=SamplingConfig(steps=steps, **sampling),
                soft_mask=self.soft,
                seed=start,
                **how,
            )
            yield from run.completions()

    def fill(self, lines: Sequence[Line]) -> tuple[str, float]:
        """ "1" for every line that comes back as it was, and the forwards a line."""
        right, forwards = ["0"] * len(lines), 0
        by_size: dict[int, list[int]] = defaultdict(list)
        for i, line in enumerate(lines):
            by_size[line.tokens].append(i)
        for size, places in by_size.items():
            holed = [f"{lines[i].before}[[{size}]]{lines[i].after}" for i in places]
            filled = self.completions(holed, size, {"alg": ALG}, infill=True)
            for i, done in zip(places, filled, strict=True):
                line = lines[i]
                text = done.text[len(line.before) : len(done.text) - len(line.after)]
                right[i] = str(int(text == line.line))
                forwards += done.forwards
        return "".join(right), forwards / len(lines)

    def write(self, prompts: Sequence[str]) -> tuple[list[str], list[list[int]], float]:
        """Texts, their ids, forwards a text."""
        how = {"alg": "origin", "temperature": self.temperature}
        written = list(self.completions(prompts, LENGTH - PROMPT, how, chat=False))
        forwards = sum(done.forwards for done in written) / len(prompts)
        return [done.text for done in written], [list(d.token_ids) for d in written], forwards

    def calculate(self, problems: Sequence[dict[str, str]]) -> tuple[str, float]:
        """ "1" for every problem whose `#### number` is the reference's, and forwards a problem."""
        asking = [asked(problem["question"]) for problem in problems]
        how = {"alg": ALG, "block_length": BLOCK}
        right, forwards = "", 0
        answered = self.completions(asking, ANSWER, how, chat=False)
        for problem, done in zip(problems, answered, strict=True):
            right += str(int(number_in(done.text) == number_in(problem["answer"])))
            forwards += done.forwards
        return right, forwards / len(problems)


class ScorerOnce(Scorer):
    """A scorer that does not read the texts of its last call a second time."""

    last: tuple[Sequence[str], list[Scored]] = ((), [])

    def nats(self, texts: Sequence[str]) -> list[Scored]:
        if list(texts) != list(self.last[0]):
            self.last = texts, super().nats(texts)
        return self.last[1]


def number_in(text: str) -> str | None:
    """The first `#### 1,234`, as 1234; None without one."""
    found = NUMBER.search(text)
    return None if found is None else found[1].replace(",", "")


def chosen_modes(names: str) -> tuple[str, ...]:
    """Raises argparse.ArgumentTypeError for a name that is none, and where `own` is missing."""
    chosen = tuple(names.split(","))
    if not {"own"} <= set(chosen) <= set(MODES):
        raise argparse.ArgumentTypeError(f"own, or own and some of {', '.join([*MODES][1:])}")
    return chosen


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--scorer", type=Path, required=True)
    parser.add_argument("--windows", type=int, default=96)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--lines", type=int, default=256)
    parser.add_argument("--gsm8k", type=Path, help="jsonl of question and answer")
    parser.add_argument("--problems", type=int, default=128)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=BATCH, help="texts side by side")
    parser.add_argument("--modes", type=chosen_modes, default=tuple(MODES), help="own,off,shuffled")
    parser.add_argument("--feedback", choices=FEEDBACK_PRESETS, help="in place of the model's own")
    parser.add_argument("--temperature", type=float, default=1.0, help="of samples")
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("high")
    checkpoint = load(args.model, device=args.device, dtype="float32")
    every = whole_windows(checkpoint, split_stories(args.text.read_text(encoding="utf-8")))
    chosen = evenly(every, args.windows)
    soft = choose_soft_mask(args.feedback or "checkpoint", checkpoint.soft_mask)
    known = [
        asdict(held_out(checkpoint.model, [window], MASKS, soft))["whole"] for window in chosen
    ]
    ways = ("plain",) if soft is None else ("plain", "fresh", "stale")
    nats = {way: [found[way]["nats"] for found in known] for way in ways}
    mixed = {way: [found[way]["mean_lambda"] for found in known] for way in ways[1:]}
    print(json.dumps({"nats": nats, "lambda": mixed}), flush=True)

    scorer = ScorerOnce(args.scorer, device=args.device)
    begun = evenly(every, args.samples)
    prompts = [checkpoint.tokenizer.decode(window[:PROMPT]) for window in begun]
    lines = list(islice(lines_of(checkpoint, every), args.lines))
    problems: list[dict[str, str]] = []
    if args.gsm8k is not None:
        problems = list(islice(read(args.gsm8k), args.problems))
    cells: list[dict[str, Any]] = []
    for mode in ("own",) if soft is None else args.modes:
        config = None if mode == "off" else soft
        for name, fewer in STEPS.items():
            decoder = Decoder(checkpoint, fewer, config, args.batch, args.temperature)
            with shuffled_feedback(0) if mode == "shuffled" else nullcontext():
                written, ids, forwards = decoder.write(prompts)
                filled, filled_forwards = decoder.fill(lines)
                if problems:
                    solved, solved_forwards = decoder.calculate(problems)
            cell = {
                "mode": mode,
                "fewer": name,
                "forwards": forwards,
                "quality": asdict(quality(written, ids, scorer)),
                "nats": [tuple(scored) for scored in scorer.nats(written)],
                "filled": filled,
                "filled_forwards": filled_forwards,
            }
            if problems:
                cell |= {"solved": solved, "solved_forwards": solved_forwards}
            cells.append(cell)
            print(json.dumps(cell), flush=True)
    result = {"soft_mask": soft and asdict(soft), "nats": nats, "lambda": mixed, "cells": cells}
    args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
