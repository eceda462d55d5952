"""Pretraining data: text and puzzles, each batch a function of (seed, number of the batch) alone.

That makes a resumed run equal to an uninterrupted one without any state of a data loader.
Shape suffixes: B batch, L length.
"""

from __future__ import annotations

import lzma
import random
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from importlib import resources
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import pre_tokenizers, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen2Tokenizer

from ..decoding.control_names import ControlNames
from ..files import expand_home
from ..puzzles.held_out import unevaluated
from ..puzzles.puzzles import Puzzle, generate_puzzles, holed, prompt_of
from ..puzzles.stories import split_documents
from .config import CorpusConfig
from .schedule import Stage

MASK_TOKEN, BEGIN_TOKEN, END_TOKEN = "<|mask|>", "<|beginoftext|>", "<|endoftext|>"
# Most end tokens after the longest answer of a batch.
MOST_SURPLUS = 8


class Batch(NamedTuple):
    """Token ids (B, L) and which of them may be masked (B, L)."""

    ids_BL: Tensor
    maskable_BL: Tensor


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Qwen2Tokenizer:
    """A byte-level BPE with Qwen2.5's splitting rules (one digit a token) and Dream's tokens."""
    backend: Any = Qwen2Tokenizer()._tokenizer
    backend.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size - 2,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            special_tokens=[END_TOKEN],
            show_progress=False,
        ),
    )
    merges: Any = merges_of(backend.model)  # pairs, which its annotation does not know
    tokenizer = Qwen2Tokenizer(
        vocab=backend.get_vocab(with_added_tokens=False),
        merges=merges,
        mask_token=MASK_TOKEN,
        bos_token=BEGIN_TOKEN,
    )
    return tokenizer


def merges_of(model: Any) -> list[tuple[str, ...]]:
    """The merge list of a trained BPE model, which `tokenizers` gives as files only."""
    with tempfile.TemporaryDirectory() as folder:
        _vocab, merges = model.save(folder)
        lines = Path(merges).read_text(encoding="utf-8").splitlines()
    return [tuple(line.split(" ")) for line in lines if not line.startswith("#version")]


def read_documents(paths: Sequence[str]) -> list[str]:
    """Documents of all files: paths, or names of files that lie beside the bundled recipes.

    A name that ends in .xz is decompressed.

    Raises:
        ValueError: a file is missing, not what its name says, or empty.
    """
    documents: list[str] = []
    for name in paths:
        path = text_file(name)
        content = path.read_bytes()
        try:
            content = lzma.decompress(content) if name.endswith(".xz") else content
            text = content.decode("utf-8-sig")  # editors on Windows begin a file with a mark
        except (lzma.LZMAError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} cannot be read as text: {error}") from error
        found = split_documents(text)
        if not found:
            raise ValueError(f"{path} holds no text")
        documents += found
    return documents


def text_file(name: str) -> Path:
    """The file of a text: one beside the bundled recipes, or else a path.

    Raises:
        ValueError: there is none.
    """
    bundled = Path(str(resources.files(__package__) / "recipes" / name))
    path = bundled if bundled.is_file() else expand_home(name)
    if not path.is_file():
        raise ValueError(f"no text file at {path}: correct corpus.text in the recipe")
    return path


def held_apart(documents: list[Tensor], config: CorpusConfig) -> tuple[list[Tensor], list[Tensor]]:
    """Documents for training, and the last ones, which are held out.

    One that is alone, or as long as nearly all, is cut.

    Raises:
        ValueError: packed rows would be longer than the one or the other part.
    """
    total = sum(map(len, documents))
    if not total:
        return documents, documents
    least = config.story_length if config.packed else 1
    if total < 2 * least:
        raise ValueError(
            f"the text has {total:,} tokens: rows of story_length, {least}, to train on and others "
            f"for validation need {2 * least:,}"
        )
    held_out = min(max(least, round(config.validation_share * total)), total - least)
    own, taken = len(documents), 0
    while taken < held_out:
        own -= 1
        taken += len(documents[own])
    if total - taken >= least:
        return documents[:own], documents[own:]
    cut = taken - held_out
    first, second = documents[own][:cut], documents[own][cut:]
    return [*documents[:own], first], [second, *documents[own + 1 :]]


class Corpus:
    """Batches of generated puzzles and of text."""

    def __init__(
        self, config: CorpusConfig, documents: list[str], tokenizer: PreTrainedTokenizerFast
    ) -> None:
        """Text and tokens; the end of the text is held out.

        Raises:
            ValueError: the text is too short for rows of both.
        """
        self.config = config
        self.tokenizer = tokenizer
        self.end = tokenizer.eos_token_id
        encoded = ControlNames(tokenizer).encode_batch(documents)
        end = [self.end] if config.packed else []
        parts = held_apart([torch.tensor(ids + end, dtype=torch.int32) for ids in encoded], config)
        self.text, self.held_out = (Text(part, config, self.end) for part in parts)

    @property
    def validation(self) -> dict[str, Callable[[random.Random], Batch]]:
        """What is never trained on: batches by their kind."""
        share = self.config.puzzle_share
        kinds = {"puzzles": self.puzzle_batch} if share > 0 else {}
        return kinds | ({"text": self.held_out.batch} if share < 1 else {})

    def batch(self, seed: int, number: int, stage: Stage) -> Batch:
        """The batch with this number in the run."""
        rng = random.Random(f"{seed}/{number}")
        share = self.config.puzzle_share if stage.puzzle_share is None else stage.puzzle_share
        if rng.random() < share:
            return self.puzzle_batch(rng, stage.puzzles, self.config.puzzle_pool)
        return self.text.batch(rng)

    def puzzles(
        self,
        rng: random.Random,
        count: int,
        mixture: dict[str, float],
        pool: int | None = None,
    ) -> list[Puzzle]:
        """Puzzles that are in no evaluation file; with `pool`, some of that many."""
        if pool is None:
            stream = generate_puzzles(rng.getrandbits(60), mixture)
            return list(islice(unevaluated(stream), count))
        # The pool is not stored: puzzle n of it is the first one of the stream with seed n.
        streams = (generate_puzzles(rng.randrange(pool), mixture) for _ in range(count))
        return [next(unevaluated(stream)) for stream in streams]

    def puzzle_batch(
        self,
        rng: random.Random,
        mixture: dict[str, float] | None = None,
        pool: int | None = None,
    ) -> Batch:
        """Rows of one kind of puzzle, which is drawn by weight: their lengths are alike."""
        mixture = mixture or self.config.puzzles
        (kind,) = rng.choices(list(mixture), list(mixture.values()))
        puzzles = self.puzzles(rng, self.config.puzzle_batch, {kind: 1.0}, pool)
        if kind in self.config.in_place:
            return self.in_place_batch(puzzles)
        return self.answer_batch(puzzles, surplus=rng.randrange(MOST_SURPLUS + 1))

    def answer_batch(self, puzzles: Sequence[Puzzle], surplus: int) -> Batch:
        """Rows of prompt, answer and end tokens; the prompt is never masked.

        The canvas is `surplus` longer than the longest row, which teaches the model to end an
        answer early where the canvas is too long for it.
        """
        rows, prompts = [], []
        for puzzle in puzzles:
            prompt = self.tokenizer(prompt_of(puzzle))["input_ids"]
            rows.append(prompt + self.tokenizer(puzzle.output)["input_ids"])
            prompts.append(len(prompt))
        length = max(map(len, rows)) + surplus
        ids_BL = torch.tensor([row + [self.end] * (length - len(row)) for row in rows])
        maskable_BL = torch.arange(length) >= torch.tensor(prompts)[:, None]
        return Batch(ids_BL, maskable_BL)

    def in_place_batch(self, puzzles: Sequence[Puzzle]) -> Batch:
        """Solved Sudokus, of which the blanks may be masked."""
        rows, maskable = [], []
        for puzzle in puzzles:
            solved = holed(replace(puzzle, input=puzzle.output))
            row = self.tokenizer(solved)["input_ids"]
            # Each character of a grid is a token; the title is before it, a line end after it.
            blank = [char == "0" for char in puzzle.input]
            rows.append(row)
            maskable.append([False] * (len(row) - len(blank) - 1) + blank + [False])
        return Batch(torch.tensor(rows), torch.tensor(maskable))


class Text:
    """Batches of documents, or of parts of them."""

    def __init__(self, documents: list[Tensor], config: CorpusConfig, end: int) -> None:
        """`documents`: their tokens, for packed rows with an end token behind each."""
        self.documents, self.config, self.end = documents, config, end
        self.stream_N = torch.cat(documents) if config.packed and documents else torch.empty(0)

    def batch(self, rng: random.Random) -> Batch:
        """Rows of text."""
        return self.packed_batch(rng) if self.config.packed else self.story_batch(rng)

    def packed_batch(self, rng: random.Random) -> Batch:
        """Full rows cut from the stream of all documents."""
        length = self.config.story_length
        last = len(self.stream_N) - length
        starts = [rng.randint(0, last) for _ in range(self.config.story_batch)]
        ids_BL = torch.stack([self.stream_N[s : s + length] for s in starts]).long()
        return Batch(ids_BL, torch.ones_like(ids_BL, dtype=torch.bool))

    def story_batch(self, rng: random.Random) -> Batch:
        """Rows of one story each, most of them from its beginning.

        In half of the rows a few first tokens are never masked, like a prompt; the end tokens
        after a short story are predicted like the rest.
        """
        length = self.config.story_length
        ids_BL = torch.full((self.config.story_batch, length), self.end)
        maskable_BL = torch.ones_like(ids_BL, dtype=torch.bool)
        for row_L, maskable_L in zip(ids_BL, maskable_BL, strict=True):
            story = self.documents[rng.randrange(len(self.documents))]
            start = 0 if rng.random() < 0.6 else rng.randrange(max(1, len(story) - length // 2))
            piece = story[start : start + length].long()
            row_L[: len(piece)] = piece
            if rng.random() < 0.5:
                maskable_L[: rng.randrange(1, 24)] = False
        return Batch(ids_BL, maskable_BL)
