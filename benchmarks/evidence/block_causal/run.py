"""What a model that is made block-causal loses, and what its exact cache brings. See README.md.

    python benchmarks/evidence/block_causal/run.py OUT [--stage train|test|speed|report]

Without --stage all of them, in this order. What is done is not done again. OUT gets result.json and
table.txt; the runs go to --work.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from softmask.config import SamplingConfig
from softmask.decoding.grid import blocks_of
from softmask.decoding.kv_cache import KeyValueStore
from softmask.decoding.sampler import denoise
from softmask.evaluation.held_out import held_out, windows
from softmask.evaluation.measure_config import HeldOutConfig
from softmask.files import write_atomically
from softmask.hub.load import load
from softmask.models.checkpoint import Checkpoint
from softmask.models.packing import Layout, Span
from softmask.puzzles.held_out import unevaluated
from softmask.puzzles.puzzles import Puzzle, generate_puzzles
from softmask.puzzles.solve import NEW_TOKENS, is_right, solve
from softmask.reporting.result_folder import provenance
from softmask.training.corpus import read_documents

STAGES = ("train", "test", "speed", "report")
HERE = Path(__file__).parent
BLOCK = 8
MODELS = {"full": (), "blocks": (f"model.block_size={BLOCK}", "train.left_to_right=0.0")}
FULL = {
    "whole text": {},
    "dual": {"block_length": BLOCK, "cache": "dual"},
}
OWN = {"exact": {"cache": "exact"}, "no cache": {"cache": "none"}}
WAYS = {"full": FULL, "blocks": OWN, "blocks-0": {"exact": OWN["exact"]}}
KINDS, PUZZLES, FEW, SIZE = ("countdown_3", "countdown_4"), 40, 20, 40
WINDOWS, LENGTH, TIMES = 24, 128, 8
PROMPT, TEXTS, ROUNDS = 8, (64, 128, 256, 512), 2
BEHIND, CALLS = (64, 256, 512, 1024, 2048), 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--stage", choices=STAGES)
    parser.add_argument("--work", type=Path, help="of the runs (default: OUT/work)")
    args = parser.parse_args()
    work = args.work or args.out / "work"
    work.mkdir(parents=True, exist_ok=True)
    args.out.mkdir(parents=True, exist_ok=True)
    for stage in STAGES if args.stage is None else (args.stage,):
        if stage == "train":
            for name in MODELS:
                train(name, work)
        elif stage == "report":
            report(args.out, work)
        else:
            (test if stage == "test" else speed)(work)


def train(name: str, work: Path) -> None:
    """One continuation, with its processor time; goes on after a kill."""
    settings = ("train.left_to_right=0.5", *MODELS[name])
    options = [word for setting in settings for word in ("--set", setting)]
    words = ["train", str(HERE / "adapt.yaml"), "--out", str(work / name), "--device", "cpu"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "softmask", *words, *options], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    path = work / f"{name}-seconds.json"
    known = json.loads(path.read_text()) if path.is_file() else []
    write_atomically(path, json.dumps([*known, used]) + "\n")


def kept(path: Path, make: Callable[[], Any]) -> Any:
    """What a file holds, or, where there is none, what is made then, and kept there."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(make(), indent=1) + "\n")
    return json.loads(path.read_text(encoding="utf-8"))


def models(work: Path) -> dict[str, Checkpoint]:
    found = {name: load(work / name / "model", device="cpu") for name in MODELS}
    found["blocks-0"] = load("default", device="cpu")
    found["blocks-0"].model.config.block_size = BLOCK
    return found


# Price


def test(work: Path) -> dict[str, Any]:
    """Bounds on stories and solved puzzles of every model in every way."""
    found = models(work) | {"bundled": load("default", device="cpu")}
    texts = read_documents(["default_stories.txt.xz"])
    cut = [w for w in windows(found["full"].tokenizer, texts, LENGTH) if len(w) == LENGTH]
    chosen = random.Random("block-causal/windows").sample(cut, WINDOWS)
    config = HeldOutConfig(length=LENGTH, times=TIMES)
    answers = [
        kept(
            work / "test" / f"{name}-{way}-{kind}-{fewer}.json".replace(" ", "_"),
            lambda cell=(found[name], name, way, kind, fewer): solved(*cell),
        )
        for name, ways in WAYS.items()
        for way in ways
        for kind in KINDS
        for fewer in (1, 2)
    ]
    bounds = {
        name: kept(
            work / "test" / f"bound-{name}.json",
            lambda one=one: asdict(held_out(one.model, chosen, config, None).whole),
        )
        for name, one in found.items()
    }
    return {"bounds": bounds, "puzzles": answers}


def puzzles_of(kind: str) -> list[Puzzle]:
    return list(islice(unevaluated(generate_puzzles(20261129, {kind: 1.0})), PUZZLES))


def solved(checkpoint: Checkpoint, name: str, way: str, kind: str, fewer: int) -> dict[str, Any]:
    """How many puzzles a way of decoding solves, and what it wrote."""
    puzzles = puzzles_of(kind)[: FEW if (name, way) == ("blocks", "no cache") else PUZZLES]
    sampling = WAYS[name][way]
    texts: list[str] = []
    right, forwards, begun = "", 0, time.process_time()
    for start in range(0, len(puzzles), SIZE):
        batch = puzzles[start : start + SIZE]
        run = solve(checkpoint, batch, fewer, None, **sampling)
        for puzzle, answer in zip(batch, run.completions(), strict=True):
            right += str(int(is_right(puzzle, answer.text)))
            forwards += answer.forwards
            texts.append(answer.text)
    row = {"model": name, "way": way, "kind": kind, "fewer": fewer, "masks": NEW_TOKENS[kind]}
    used = time.process_time() - begun
    each = forwards / len(puzzles)
    return row | {"solved": right, "forwards": each, "processor": used, "texts": texts}


# Gain


@torch.no_grad()
def speed(work: Path) -> dict[str, Any]:
    """Seconds of texts and of forwards, all ways in turns."""
    torch.set_num_threads(1)
    found = models(work)
    for checkpoint in found.values():
        checkpoint.model.config.max_position_embeddings = PROMPT + max(*TEXTS, *BEHIND)
    ways = {
        (name, way): settings
        for name, own in WAYS.items()
        if name != "blocks-0"
        for way, settings in own.items()
    }
    forwards = kept(work / "speed" / "forwards.json", lambda: calls(found))
    texts = []
    for length in TEXTS:
        for number in range(ROUNDS if length < max(TEXTS) else 1):

            def turn(length: int = length, number: int = number) -> list[dict[str, Any]]:
                rows = []
                for (name, way), settings in ways.items():
                    seconds, used, forwards = text_of(found[name], length, settings)
                    row = {"model": name, "way": way, "tokens": length, "round": number}
                    rows.append(row | {"seconds": seconds, "processor": used, "forwards": forwards})
                return rows

            texts += kept(work / "speed" / f"{length}-{number}.json", turn)
    return {"texts": texts, "forwards": forwards}


def calls(found: dict[str, Checkpoint]) -> list[dict[str, Any]]:
    """Single forwards behind more and more tokens, in turns."""
    forwards = []
    for behind in BEHIND:
        for _ in range(CALLS):
            for name, call in forward_calls(found, behind).items():
                call()
                begun = time.perf_counter()
                call()
                seconds = time.perf_counter() - begun
                forwards.append({"what": name, "behind": behind, "seconds": seconds})
    return forwards


def text_of(
    checkpoint: Checkpoint, length: int, settings: dict[str, Any]
) -> tuple[float, float, int]:
    """Seconds, processor time and forwards of a text of so many tokens."""
    canvas = torch.full((1, PROMPT + length), checkpoint.model.mask_id)
    canvas[0, :PROMPT] = torch.arange(300, 300 + PROMPT)
    sampling = SamplingConfig(steps=length // 2, alg="topk_margin", **settings)
    begun, used = time.perf_counter(), time.process_time()
    *_, last = denoise(checkpoint.model, canvas, sampling)
    return time.perf_counter() - begun, time.process_time() - used, last.forwards


def forward_calls(found: dict[str, Checkpoint], behind: int) -> dict[str, Callable[[], Any]]:
    """A forward in the middle of a block behind so many tokens: of all, and of the block alone."""
    length = behind + BLOCK
    place = torch.arange(length)
    previous = (place - 1).clamp_min(0)
    ids = torch.arange(length)[None] % 2000
    full, own = found["full"].model, found["blocks"].model
    whole = Layout(place, place, previous, [Span(length, 0, length)])
    grid = blocks_of(own.config, 0, length)
    assert grid is not None
    store = KeyValueStore(length)
    spans = [span for _, span in grid.spans(0, length)]
    own.hidden(ids, Layout(place, place, previous, spans, store))
    # A column more: it predicts the block's first one.
    part = Layout(
        place[behind - 1 :],
        place[behind - 1 :],
        previous,
        [Span(1, 0, behind), Span(BLOCK, 0, length)],
        store,
    )
    return {
        "whole text": lambda: full.hidden(ids, whole),
        "block, exact": lambda: own.hidden(ids[:, behind - 1 :], part),
    }


# Report


def report(out: Path, work: Path) -> None:
    """The tables, and everything that they come from."""
    found = made(work)
    used = {name: sum(json.loads((work / f"{name}-seconds.json").read_text())) for name in MODELS}
    lines = ["training", f"{'':24}{'processor seconds':>20}"]
    lines += [f"{name:24}{seconds:20.0f}" for name, seconds in used.items()]
    lines += ["", "stories: bound, nats a token (standard error)"]
    for name, one in found["bounds"].items():
        lines.append(f"{name:24}{one['plain']['nats']:12.3f} ({one['plain']['error']:.3f})")
    lines += [
        "",
        "Countdown: solved, forwards a puzzle",
        _row("", "", "3", "3, half", "4", "4, half"),
    ]
    for name, ways in WAYS.items():
        for way in ways:
            cells = [
                f"{_share(one['solved'])} {one['forwards']:.1f}"
                for kind in KINDS
                for fewer in (1, 2)
                for one in found["puzzles"]
                if (one["model"], one["way"]) == (name, way)
                and (one["kind"], one["fewer"]) == (kind, fewer)
            ]
            lines.append(_row(name, way, *cells))
    lines += ["", "the cache changes nothing: " + _same(found["puzzles"])]
    lines += ["", "processor seconds a text, and (tokens a second), by its new tokens"]
    lines.append(_row("", "", *map(str, TEXTS)))
    for name, way in dict.fromkeys((one["model"], one["way"]) for one in found["texts"]):
        cells = []
        for length in TEXTS:
            values = [
                one["processor"]
                for one in found["texts"]
                if (one["model"], one["way"], one["tokens"]) == (name, way, length)
            ]
            if values:
                median = statistics.median(values)
                cells.append(f"{median:.2f} ({length / median:.0f})")
        lines.append(_row(name, way, *cells))
    lines += ["", "milliseconds a forward, by the tokens in front of the block"]
    lines.append(_row("", "", *map(str, BEHIND)))
    for what in dict.fromkeys(one["what"] for one in found["forwards"]):
        cells = []
        for behind in BEHIND:
            same = [
                o["seconds"]
                for o in found["forwards"]
                if (o["what"], o["behind"]) == (what, behind)
            ]
            cells.append(f"{1000 * min(same):.1f}")
        lines.append(_row("", what, *cells))
    text = "\n".join(line.rstrip() for line in lines) + "\n"
    write_atomically(out / "table.txt", text)
    for one in found["puzzles"]:
        one.pop("texts")
    found = {"training": used, **found, **provenance()}
    write_atomically(out / "result.json", json.dumps(found, indent=1) + "\n")
    print(text)


def made(work: Path) -> dict[str, Any]:
    """What the stages have left."""
    bound = {path.stem.removeprefix("bound-"): path for path in work.glob("test/bound-*.json")}
    answers = set(work.glob("test/*.json")) - set(bound.values())
    turns = [json.loads(path.read_text()) for path in sorted(work.glob("speed/*-*.json"))]
    calls = work / "speed" / "forwards.json"
    return {
        "bounds": {name: json.loads(path.read_text()) for name, path in sorted(bound.items())},
        "puzzles": [json.loads(path.read_text()) for path in sorted(answers)],
        "texts": [row for turn in turns for row in turn],
        "forwards": json.loads(calls.read_text()) if calls.is_file() else [],
    }


def _row(name: str, way: str, *cells: str) -> str:
    return f"{name:9}{way:18}" + "".join(f"{cell:>14}" for cell in cells)


def _share(solved: str) -> str:
    share = solved.count("1") / len(solved)
    return f"{100 * share:.0f}±{100 * math.sqrt(share * (1 - share) / len(solved)):.0f} %"


def _same(answers: list[dict[str, Any]]) -> str:
    """How many texts of the exact cache are those without one."""
    own = [one for one in answers if one["model"] == "blocks"]
    pairs = [
        (a, b)
        for one in own
        for other in own
        if (one["way"], other["way"]) == ("exact", "no cache")
        and (one["kind"], one["fewer"]) == (other["kind"], other["fewer"])
        for a, b in zip(one["texts"], other["texts"], strict=False)
    ]
    return f"{sum(a == b for a, b in pairs)} of {len(pairs)} texts are equal"


if __name__ == "__main__":
    main()
