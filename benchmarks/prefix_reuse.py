"""What a turn of a chat costs with kept prefixes and without: seconds to its first block.

    python benchmarks/prefix_reuse.py benchmarks/results/DATE_prefix_reuse

A random block-causal model (blocks of 32, as Fast-dLLM v2's, fp32) on two engines, one of which
keeps what earlier requests computed. Both answer the same chats, turn by turn and in turns: a
system prompt, then each turn what was said before and a new message. Measured are the seconds from
submission until the first tokens (the first step), until the first block is decided, and until the
answer is. Chats differ, so a first turn shares the system prompt alone. Every answer must be the
same on both engines. People read the tables; the last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from softmask.config import SamplingConfig
from softmask.models import DreamConfig, DreamModel
from softmask.reporting.measure import pair_ratios, summary
from softmask.reporting.result_folder import claim, write
from softmask.reporting.tables import light_table
from softmask.serving.engine import Engine, Request

BLOCK, VOCABULARY = 32, 8192
SYSTEM, MESSAGE, ANSWER = 200, 60, 96  # tokens
TOKENS_A_STEP = 4
MOMENTS = ("first tokens", "first block", "answer")
WAYS = ("reuse", "anew")


def make_model() -> DreamModel:
    """Random weights, in Qwen3's proportions."""
    torch.manual_seed(0)
    config = DreamConfig(
        vocab_size=VOCABULARY,
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=4096,
        mask_token_id=VOCABULARY - 1,
        pad_token_id=None,
        eos_token_id=0,
        block_size=BLOCK,
        logit_shift=False,
    )
    return DreamModel(config).eval()


def ask(engine: Engine, ids: tuple[int, ...]) -> tuple[dict[str, float], tuple[int, ...], int]:
    """Seconds until each moment, the whole text, and how many of its tokens were kept."""
    sampling = SamplingConfig(
        steps=ANSWER // TOKENS_A_STEP, alg="maskgit_plus", cache="exact", step_schedule="even"
    )
    asked = Request((*ids, *[VOCABULARY - 1] * ANSWER), sampling)
    # Where the answer's first block ends; its prompt rarely ends with one.
    first = (len(ids) // BLOCK + 1) * BLOCK
    started, seconds = time.perf_counter(), dict[str, float]()
    handle = engine.submit(asked)
    for event in handle:
        passed = time.perf_counter() - started
        seconds.setdefault("first tokens", passed)
        if event.final >= first:
            seconds.setdefault("first block", passed)
    result = handle.result()
    seconds["answer"] = time.perf_counter() - started
    return seconds, result.ids, result.cached_tokens


def chat(engines: dict[str, Engine], turns: int, seed: int) -> list[dict[str, Any]]:
    """A chat on both engines, turn by turn; which of them is first changes."""
    words, found = random.Random(seed), []
    said = tuple(random.Random(0).choices(range(1, VOCABULARY - 1), k=SYSTEM))
    for turn in range(turns):
        said += tuple(words.choices(range(1, VOCABULARY - 1), k=MESSAGE))
        names = WAYS if (turn + seed) % 2 else WAYS[::-1]
        taken = {name: ask(engines[name], said) for name in names}
        assert taken["reuse"][1] == taken["anew"][1], "an answer is another one"
        found.append(
            {
                "prompt": len(said),
                "cached": taken["reuse"][2],
                **{name: seconds for name, (seconds, _, _) in taken.items()},
            }
        )
        said = taken["reuse"][1]
    return found


def summarise(chats: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Each turn over all chats."""
    rows = []
    for turn, of_turn in enumerate(zip(*chats, strict=True), start=1):
        row: dict[str, Any] = {"turn": turn}
        row |= {name: of_turn[-1][name] for name in ("prompt", "cached")}
        for moment in MOMENTS:
            anew, reuse = ([one[way][moment] for one in of_turn] for way in ("anew", "reuse"))
            row[moment] = {
                "anew_s": summary(anew),
                "reuse_s": summary(reuse),
                "ratio": pair_ratios(anew, reuse),
            }
        rows.append(row)
    return rows


def spread(numbers: dict[str, float], digits: int) -> str:
    low, middle, high = (numbers[key] for key in ("min", "median", "max"))
    return f"{middle:.{digits}f} [{low:.{digits}f}..{high:.{digits}f}]"


def tables_of(rows: list[dict[str, Any]], chats: int) -> list[Table]:
    tables = []
    for moment in MOMENTS:
        table = light_table(f"seconds to the {moment}, median \\[min..max] of {chats} chats")
        for column in ("turn", "prompt", "kept", "anew", "reuse", "anew / reuse"):
            table.add_column(column, justify="right")
        for row in rows:
            own = row[moment]
            table.add_row(
                *(str(row[name]) for name in ("turn", "prompt", "cached")),
                spread(own["anew_s"], 3),
                spread(own["reuse_s"], 3),
                spread(own["ratio"], 2),
            )
        tables.append(table)
    return tables


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, help="where the result is written")
    parser.add_argument("--chats", type=int, default=5)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.folder is not None:
        claim(args.folder)
    model = make_model()
    sizes = {"reuse": 256, "anew": 0}
    engines = {
        name: Engine(model, positions=4096, prefix_cache_mb=size) for name, size in sizes.items()
    }
    with engines["reuse"], engines["anew"]:
        chat(engines, 2, seed=-1)  # what comes first is slow
        chats = [chat(engines, args.turns, seed) for seed in range(args.chats)]
        kept = vars(engines["reuse"].stats().prefixes)
    rows = summarise(chats)
    tables = tables_of(rows, args.chats)
    for table in tables:
        Console().print(table)
    shape = {"hidden_size": 512, "layers": 8, "block": BLOCK, "vocabulary": VOCABULARY}
    tokens = {"system": SYSTEM, "message": MESSAGE, "answer": ANSWER, "a_step": TOKENS_A_STEP}
    settings = {"model": shape, "tokens": tokens, "prefix_cache_mb": sizes["reuse"]}
    result = {"settings": settings, "summary": rows, "prefixes": kept, "raw": chats}
    if args.folder is not None:
        write(args.folder, ["python", *sys.argv], result, tables)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
