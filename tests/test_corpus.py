"""Pretraining batches: each a function of (seed, number), none with an evaluation puzzle."""

from __future__ import annotations

import random
from itertools import islice
from pathlib import Path

import pytest
import torch

from softmask.corpus import Corpus, held_out_digest, read_held_out, train_tokenizer
from softmask.plan import Plan
from softmask.puzzles import generate_puzzles, read_puzzles
from softmask.train_config import CorpusConfig, TrainConfig

SHARED = Path(__file__).parents[2] / "shared" / "data" / "planning"
STORIES = [
    f"Once upon a time there was a cat number {i}. It sat on a mat. The end." for i in range(9)
]
CONFIG = CorpusConfig(text=("-",), puzzle_batch=4, story_batch=3, story_length=24)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(STORIES, 300)


@pytest.mark.parametrize("packed", [False, True])
def test_batches_derive_from_seed_and_number_alone(tokenizer, packed) -> None:
    config = CorpusConfig(
        text=("-",), puzzle_batch=4, story_batch=3, story_length=24, packed=packed
    )
    stage = Plan(TrainConfig(), 10).at(0)
    a, b = (Corpus(config, STORIES, tokenizer) for _ in range(2))
    for number in (7, 3, 7):
        first, second = (corpus.batch(1, number, stage) for corpus in (a, b))
        assert torch.equal(first.ids_BL, second.ids_BL)
        assert torch.equal(first.maskable_BL, second.maskable_BL)
    assert not torch.equal(
        a.puzzle_batch(random.Random(1)).ids_BL[:, :8],
        a.puzzle_batch(random.Random(2)).ids_BL[:, :8],
    )


def test_packed_rows_run_through_the_documents_without_padding(tokenizer) -> None:
    config = CorpusConfig(text=("-",), puzzle_share=0.0, packed=True, story_length=40)
    corpus = Corpus(config, STORIES, tokenizer)
    whole = [i for story in STORIES for i in [*tokenizer(story)["input_ids"], corpus.end]]
    ids, maskable = corpus.text_batch(random.Random(0))
    assert ids.shape == (16, 40)
    assert maskable.all()
    joined = ",".join(map(str, whole))
    assert all(",".join(map(str, row.tolist())) in joined for row in ids)


def test_a_text_shorter_than_a_packed_row_is_refused(tokenizer) -> None:
    config = CorpusConfig(text=("-",), puzzle_share=0.0, packed=True, story_length=5000)
    with pytest.raises(ValueError, match="fewer than story_length"):
        Corpus(config, STORIES, tokenizer)


def test_no_training_puzzle_is_an_evaluation_puzzle(tokenizer) -> None:
    data = Corpus(CONFIG, STORIES, tokenizer)
    held_out = read_held_out()
    mixture = {"sudoku_4x4": 1.0, "countdown_3": 1.0}
    seed = random.Random(3).getrandbits(60)
    plain = generate_puzzles(seed, mixture)
    met = [held_out_digest(p.kind, p.input) in held_out for p in islice(plain, 6000)]
    assert any(met)  # the evaluation's puzzles do come up, and are left out:
    drawn = data.puzzles(random.Random(3), 6000, mixture)
    assert not any(held_out_digest(p.kind, p.input) in held_out for p in drawn)


@pytest.mark.skipif(not SHARED.is_dir(), reason="Dream's evaluation files are not beside us")
def test_the_held_out_list_covers_the_evaluation_files() -> None:
    held_out = read_held_out()
    for path in SHARED.glob("*.jsonl"):
        kind = "sudoku" if path.name.startswith("sudoku") else "countdown"
        assert all(held_out_digest(kind, p.input) in held_out for p in read_puzzles(path, kind))
