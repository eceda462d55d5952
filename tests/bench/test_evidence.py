"""The experiments of benchmarks/evidence: errors, ablation, and each as a whole at tiny size."""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from paths import ROOT

from softmask.config import SamplingConfig
from softmask.decoding.generation import Generation
from softmask.decoding.soft_state import SoftState
from softmask.hub.load import load
from softmask.puzzles.puzzles import is_solved

EVIDENCE = ROOT / "benchmarks" / "evidence"


@pytest.fixture(autouse=True)
def beside_the_scripts(monkeypatch) -> None:
    """They are scripts: what they import lies beside them."""
    monkeypatch.syspath_prepend(str(EVIDENCE))


tables = st.integers(2, 4).flatmap(
    lambda seeds: st.lists(
        st.lists(st.sampled_from([0.0, 1.0]), min_size=seeds, max_size=seeds),
        min_size=2,
        max_size=9,
    )
)


@given(columns=tables)
def test_an_error_knows_seeds_and_puzzles(columns: list[list[float]]) -> None:
    from common import estimate, minus

    rows = [list(row) for row in zip(*columns, strict=True)]
    found = estimate(rows)
    assert found.mean == pytest.approx(statistics.fmean(map(statistics.fmean, columns)))
    over_items = statistics.stdev(map(statistics.fmean, columns)) / math.sqrt(len(columns))
    over_seeds = statistics.stdev(map(statistics.fmean, rows)) / math.sqrt(len(rows))
    assert found.error == pytest.approx(math.hypot(over_items, over_seeds))
    assert found.error >= max(over_items, over_seeds) - 1e-12
    nothing = estimate(minus(rows, rows))
    assert (nothing.mean, nothing.error) == (0, 0)


def test_shuffled_feedback_stays_within_its_text_and_changes_nothing_but_its_place(model) -> None:
    from score_puzzles import shuffled_feedback

    checkpoint = load(model, device="cpu")

    def states(shuffled: bool) -> list[torch.Tensor]:
        """lambda of all positions after the first step, text by text."""
        run = Generation(
            checkpoint,
            ["one", "a second, longer text"],
            max_new_tokens=12,
            sampling=SamplingConfig(steps=6),
            soft_mask=checkpoint.soft_mask,
            seed=0,
            chat=False,
        )
        kept: list[torch.Tensor] = []
        put = SoftState.put

        def watch(state, rows, mixed):
            put(state, rows, mixed)
            if not kept:
                kept.append(state.lambda_P.clone())

        SoftState.put = watch
        try:
            if shuffled:
                with shuffled_feedback(0):
                    run.completions()
            else:
                run.completions()
        finally:
            SoftState.put = put
        (lambda_P,) = kept
        used = lambda_P.nonzero().squeeze(1)
        gap = int((used[1:] - used[:-1]).argmax()) + 1
        return [lambda_P[used[:gap]], lambda_P[used[gap:]]]

    straight, shuffled = states(False), states(True)
    for one, other in zip(straight, shuffled, strict=True):
        assert not torch.equal(one, other)
        assert torch.equal(one.sort().values, other.sort().values)
    for one, other in zip(straight, states(False), strict=True):
        assert torch.equal(one, other)  # outside of it everything is as before


def test_held_out_sudokus_are_as_hard_as_their_level_says_and_twins_of_no_training_puzzle() -> None:
    from puzzles import GIVENS, held_out_sudokus

    for level, givens in GIVENS.items():
        for puzzle in islice(held_out_sudokus(level, givens), 2):
            assert 81 - puzzle.input.count("0") == givens
            assert is_solved("sudoku", puzzle.input, puzzle.output)


@pytest.mark.parametrize(
    ("arms", "reason"),
    [
        ("plain,softer", "no arm softer"),
        ("soft-1,soft-3", "compared with plain"),
        ("plain,plain-longer", "compared with soft-3"),
    ],
)
def test_arms_that_cannot_be_compared_are_refused(arms, reason) -> None:
    from common import chosen_arms

    with pytest.raises(argparse.ArgumentTypeError, match=reason):
        chosen_arms(arms)
    assert [arm.name for arm in chosen_arms("soft-3,plain")] == ["plain", "soft-3"]


def run(*arguments: object) -> None:
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]


# The log has tenths of seconds, and the experiment divides by what four updates take.
TINY = [
    *("train.steps=8", "train.precision=float32", "train.log_every=4", "train.eval_batches=1"),
    *("train.optimizer=adamw", "train.eval_every=8", "corpus.puzzle_batch=64"),
]


def scored(entropy: float, nats: float) -> dict:
    """Samples of one token each, in as many forwards as tokens."""
    quality = {"unigram_entropy": entropy, "repetition_4": 0.0}
    return {"cells": [{"fewer": "full", "quality": quality, "nats": [(nats, 1, 1)]}]}


def test_samples_are_compared_at_equal_entropy_with_what_a_temperature_would_give() -> None:
    from equal_entropy import Points

    scores = {
        ("plain", 1, 0.8): scored(4.0, 5.0),
        ("plain", 1, 1.0): scored(4.4, 7.0),
        ("wide", 1, 0.8): scored(3.9, 4.0),
        ("wide", 1, 1.0): scored(4.3, 6.0),
    }
    points = Points(scores)
    # At entropy 4.3 a plain sample has 6.5 nats; none was seen at 3.9.
    assert points.minus_plain("wide", 1.0, "full") == pytest.approx([-0.5])
    assert points.minus_plain("wide", 0.8, "full") is None


@pytest.mark.slow
@pytest.mark.parametrize("experiment", ["sudoku", "countdown"])
def test_an_experiment_on_puzzles_runs_from_nothing_to_its_tables(
    tmp_path, data, experiment
) -> None:
    sizes = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 1}
    settings = [*TINY, *(f"model.shape.{name}={size}" for name, size in sizes.items())]
    if experiment == "countdown":
        settings.append("train.stages=[]")
    more = [word for setting in settings for word in ("--more", setting)]
    out = tmp_path / "out"
    command = [EVIDENCE / "puzzles.py", experiment, out, "--share", "0.012", "--seeds", "1"]
    run(*command, "--data", data / "planning", *more)
    result = json.loads((out / "result.json").read_text())
    assert {row["arm"] for row in result["numbers"]} == {arm["name"] for arm in result["arms"]}
    modes = {(row["arm"], row["mode"]) for row in result["numbers"]}
    assert {("plain", "untrained"), ("soft-3", "off"), ("soft-3", "shuffled")} <= modes
    by_fewer = {
        row["fewer"]: row["forwards"]
        for row in result["numbers"]
        if (row["arm"], row["mode"]) == ("plain", "own")
    }
    assert by_fewer["full"] > by_fewer["1/2"] > by_fewer["1/4"] > by_fewer["1/8"]
    assert (out / "accuracy.png").is_file()
    assert (out / "parameters.png").is_file()
    assert "(e) always two passes" in (out / "table.txt").read_text()


@pytest.mark.slow
def test_the_experiment_on_code_runs_from_nothing_to_its_tables(tmp_path, model) -> None:
    run(EVIDENCE / "code_corpus.py", tmp_path / "code", "--megabytes", "1.5")
    sources = json.loads((tmp_path / "code" / "sources.json").read_text())
    assert sources["sources"][0]["licence"] == "PSF-2.0"
    settings = ["model.shape.vocab_size=400", "model.shape.hidden_size=24", *TINY]
    more = [word for setting in settings for word in ("--more", setting)]
    scorer = ["--code", tmp_path / "code", "--scorer", causal(tmp_path / "scorer", model)]
    out = tmp_path / "out"
    run(EVIDENCE / "text.py", out, *scorer, "--seeds", "1,2", *few(3), *more)
    result = json.loads((out / "result.json").read_text())
    feedback = {(row["arm"], row["feedback"]) for row in result["numbers"]["nats"]}
    assert {("plain", "plain"), ("soft-3", "fresh"), ("soft-3", "stale")} <= feedback
    assert (out / "decoding.png").is_file()

    sharper = [*scorer, "--work", out / "work", "--arms", "plain,soft-3", "--seeds", "1,2"]
    out = tmp_path / "out2"
    run(EVIDENCE / "equal_entropy.py", out, *sharper, "--temperatures", "0.5,1", "--samples", "2")
    raw = json.loads((out / "result.json").read_text())["raw"]
    assert {(row["arm"], row["seed"], row["temperature"]) for row in raw} == {
        (arm, seed, temperature)
        for arm in ("plain", "soft-3")
        for seed in (1, 2)
        for temperature in (0.5, 1.0)
    }
    assert (out / "entropy.png").is_file()

    out = tmp_path / "out3"
    work, text = tmp_path / "out" / "work", tmp_path / "code" / "held_out.txt"
    few_windows = ["--arms", "plain,soft-3", "--seeds", "1,2", "--windows", "2"]
    run(EVIDENCE / "by_time.py", out, "--work", work, "--text", text, *few_windows)
    rows = json.loads((out / "result.json").read_text())["rows"]
    whole = [row for row in rows if (row["low"], row["high"]) == (0.0, 1.0)]
    assert [row["seed"] for row in whole] == [1, 2]
    assert len(rows) == 2 * 11


def test_an_adapted_model_is_the_causal_one_with_eyes_for_what_follows(tmp_path, model) -> None:
    from adapt import dream_of, tokenizer_of
    from transformers import AutoModelForCausalLM

    folder = causal(tmp_path / "llama", model, kind="llama")
    torch.manual_seed(0)
    source = AutoModelForCausalLM.from_pretrained(folder).eval()
    for parameter in source.parameters():
        parameter.data.normal_(std=0.3)
    tokenizer = tokenizer_of(folder)
    dream = dream_of(source, tokenizer).eval()
    ids = torch.randint(0, 50, (2, 7))
    # In the only layer the last row sees the same both ways, and predicts what would follow.
    hidden = dream(ids).last_hidden_state[:, -1]
    logits = source(ids).logits[:, -1]
    known = logits.shape[-1]
    torch.testing.assert_close(dream.lm_head(hidden)[:, :known], logits)
    assert dream.config.mask_token_id == tokenizer.mask_token_id
    assert not torch.allclose(dream(ids).logits[:, 2, :known], source(ids).logits[:, 1])


@pytest.mark.slow
def test_the_experiment_on_an_adapted_model_runs_from_nothing_to_its_tables(
    tmp_path, model
) -> None:
    folder = causal(tmp_path / "llama", model, kind="llama")
    data = tmp_path / "data"
    problems = [
        {"question": f"What is {n} and 1?", "answer": f"It is {n + 1}.\n#### {n + 1}"}
        for n in range(9)
    ]
    task = {"instruction": "Say it.", "instances": [{"input": "it", "output": "it"}]}
    files = {
        "eval/gsm8k_train.jsonl": problems,
        "eval/mbpp.jsonl": [{"task_id": 11, "text": "a test"}, {"task_id": 700, "text": "not one"}],
        "text/self_instruct_seed_tasks.jsonl": [task],
    }
    for name, rows in files.items():
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        (data / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    (data / "text" / "wiki.train.tokens").write_text("A paragraph of words.\n" + "Words. " * 400)
    run(
        EVIDENCE / "words.py",
        tmp_path / "words",
        "--model",
        folder,
        "--data",
        data,
        "--tokens",
        300,
    )
    assert "What is 3 and 1?\nAnswer: It is 4." in (tmp_path / "words" / "gsm8k.txt").read_text()
    run(EVIDENCE / "adapt.py", folder, tmp_path / "dream")
    code = tmp_path / "code"
    code.mkdir()
    source = "import this\n\n\ndef add(a, b):\n    return a + b\n" * 40
    for name in ("train.txt", "held_out.txt"):
        (code / name).write_text(f"{source}\n<|endoftext|>\n{source}")
    settings = [setting for setting in TINY if "puzzle" not in setting]
    more = [word for setting in settings for word in ("--more", setting)]
    base = ["--base", tmp_path / "dream", "--recipes", "adapted", "--words", tmp_path / "words"]
    scored = ["--gsm8k", data / "eval" / "gsm8k_train.jsonl", *few(2), "--batch", "2"]
    out = tmp_path / "out"
    command = [EVIDENCE / "text.py", out, "--code", code, "--scorer", folder, *base, *scored]
    run(*command, "--arms", "plain,soft-3", "--seeds", "1,2", *more)
    result = json.loads((out / "result.json").read_text())
    assert [arm["name"] for arm in result["arms"]] == ["plain", "soft-3"]
    cells = {(row["arm"], row["mode"], row["fewer"]): row for row in result["numbers"]["decoding"]}
    assert cells["soft-3", "own", "full"]["solved"]["mean"] >= 0
    assert "GSM8K" in (out / "table.txt").read_text()


def few(count: int) -> list[str]:
    """So many of everything that a text model is scored on."""
    return [f"--{what}={count}" for what in ("windows", "samples", "lines", "problems")]


def causal(folder: Path, dream: Path, kind: str = "qwen2") -> Path:
    """A tiny random causal model with the tokenizer of a tiny Dream."""
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = load(dream, device="cpu").tokenizer
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}:"
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    config = AutoConfig.for_model(kind, vocab_size=len(tokenizer), **sizes, **heads)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
