"""Tasks after ParallelBench (arXiv 2510.04767): easy one by one, hard for tokens in parallel.

    waiting line   ten operations on a list of names: copy, reverse, sort, shuffle, and insert,
                   remove or replace, at a given place ("_index") or at any ("_random")
    puzzles        a Latin square of four symbols; a 4x4 Sudoku with 12 givens
    text writing   a sentence that has four given words, which are of one scene (easy), of two
                   (medium) or rare and unrelated (hard)

What is the paper's: the tasks, 100 documents each, lines of 3 to 6 names (25 of each length), one
example (none for sentences), greedy decoding, and what is right. Its code has no license, so
nothing of it is here: names, words, grids and the wording of the prompts are ours, and scores do
not compare with published ones. Places are counted from 1 here, from 0 there. Lines have
96 tokens; there 32. Sentences must also pass a grammar checker there; here a rule judges
them (see `sentence_results`), which is weaker. Paraphrases and summaries, which need models to
judge, are left out.

Rows are made by `documents`, seeded by the name of the task: the same everywhere and always.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from ...puzzles.puzzles import generate_sudoku, is_solved

__all__ = [
    "LINES",
    "documents",
    "latin_square_results",
    "line_results",
    "sentence_results",
    "sudoku_results",
]

Row = dict[str, Any]
SAMPLES, EXAMPLES = 100, 20
LENGTHS = range(3, 7)
SYMBOLS = "ABCDEFGHJKLMNPQRSTUVWXYZ23456789"  # without those that look alike
SUDOKU_GIVENS = 12

_FIRST = (
    "Adele Alma Anton Beatrix Bruno Carmen Casper Celia Conrad Dora Edgar Elsa Emil Esther Fabian "
    "Flora Gideon Greta Hanna Hugo Ida Irene Jasper Jonas Judith Kaspar Lena Leopold Lydia Magnus "
    "Marlene Milo Nadia Nils Olga Oscar Paula Quentin Ramona Rupert Sabine Silas Tamara Theo "
    "Ursula Victor Wanda Wilma Yvonne Zeno"
).split()
_LAST = (
    "Abbott Arnold Barlow Beck Bishop Chandler Cole Conway Dalton Drake Ellery Everett Farrow "
    "Finch Garner Graves Hale Hobbs Ingram Jarvis Keller Kemp Lambert Lowell Marsh Mercer Nash "
    "Norris Oakley Osborne Paxton Pratt Quincy Radford Rowe Sawyer Stokes Thorne Tucker Underhill "
    "Vance Walden Webb Winslow Yates"
).split()
_SCENES = [
    scene.split()
    for scene in (
        "pot stove soup spoon onion salt",
        "train ticket platform seat window station",
        "garden rose bee fence rain shovel",
        "school teacher lesson book chalk desk",
        "boat lake fish net wind shore",
        "doctor nurse patient bed fever medicine",
        "snow mountain ski boot sled jacket",
        "farm cow milk barn hay tractor",
        "piano song concert singer stage drum",
        "market apple basket price farmer stall",
    )
]
_RARE = (
    "abacus alchemy anvil archipelago basalt catapult chandelier cobalt comet dynasty enzyme "
    "falcon fjord geyser glacier gondola harpoon hieroglyph isotope kaleidoscope labyrinth "
    "lighthouse limerick mammoth marzipan meteor mosaic nebula obelisk origami parliament "
    "pendulum quartz sextant sonnet sphinx telegraph trombone turbine velvet volcano walrus "
    "zeppelin"
).split()


def _copy(rng: random.Random, line: list[str]) -> Row:
    return {"output": line}


def _reverse(rng: random.Random, line: list[str]) -> Row:
    return {"output": line[::-1]}


def _sort(rng: random.Random, line: list[str]) -> Row:
    return {"output": sorted(line)}


def _shuffle(rng: random.Random, line: list[str]) -> Row:
    while (mixed := rng.sample(line, len(line))) == line:
        pass
    return {"output": mixed}


def _insert(rng: random.Random, line: list[str]) -> Row:
    *line, name = line
    place = rng.randint(1, len(line) + 1)
    output = [*line[: place - 1], name, *line[place - 1 :]]
    return {"line": line, "name": name, "place": place, "output": output}


def _remove(rng: random.Random, line: list[str]) -> Row:
    place = rng.randint(1, len(line))
    return {"place": place, "output": line[: place - 1] + line[place:]}


def _replace(rng: random.Random, line: list[str]) -> Row:
    *line, name = line
    place = rng.randint(1, len(line))
    output = [*line[: place - 1], name, *line[place:]]
    return {"line": line, "name": name, "place": place, "output": output}


# An operation: what makes its row, the names it needs beside the line, and the request.
LINES: dict[str, tuple[Callable[[random.Random, list[str]], Row], int, str]] = {
    "copy": (_copy, 0, "Write the line again, unchanged."),
    "reverse": (_reverse, 0, "Write the line in reverse order, from last to first."),
    "sort": (_sort, 0, "Write the line sorted alphabetically by first name."),
    "shuffle": (_shuffle, 0, "Write the line in any other order."),
    "insert_index": (_insert, 1, '"{name}" joins as number {place} of the line. Write the line.'),
    "insert_random": (_insert, 1, '"{name}" joins at any place you like. Write the line.'),
    "remove_index": (_remove, 0, "Number {place} of the line goes home. Write who is left."),
    "remove_random": (_remove, 0, "One of them, you choose who, goes home. Write who is left."),
    "replace_index": (
        *(_replace, 1, 'Number {place} of the line gives its place to "{name}". Write the line.'),
    ),
    "replace_random": (
        *(_replace, 1, 'One of them, you choose who, gives its place to "{name}". Write the line.'),
    ),
}


def documents(*, kind: str, samples: int = SAMPLES, **metadata: Any) -> dict[str, Any]:
    """Return the rows of a task, as lm-eval's `custom_dataset`: splits "test" and "fewshot".

    A row has `input`, what is asked, and `output`, one right answer, both as text, and what its
    check needs. `metadata` is what lm-eval passes of a task, which has no say.

    Args:
        kind: "line_" and one of `LINES`, "latin_square", "sudoku", "sentence_easy" or "_medium"
            or "_hard".
        samples: rows of the test split.

    Raises:
        ValueError: another kind, or no samples.
    """
    from datasets import Dataset

    if kind not in _MAKERS:
        raise ValueError(f"a kind of ParallelBench is {', '.join(_MAKERS)}, not {kind!r:.60}")
    if samples < 1:
        raise ValueError(f"samples must be at least 1, not {samples}")
    rng, seen = random.Random(f"parallelbench {kind}"), set()
    rows: list[Row] = []
    while len(rows) < EXAMPLES + samples:
        row = _MAKERS[kind](rng, len(rows))
        # No example, and no other document, asks the same.
        if row["input"] not in seen:
            seen.add(row["input"])
            rows.append(row)
    fewshot, test = rows[:EXAMPLES], rows[EXAMPLES:]
    return {"fewshot": Dataset.from_list(fewshot), "test": Dataset.from_list(test)}


def _line(operation: str) -> Callable[[random.Random, int], Row]:
    make, beside, request = LINES[operation]

    def row(rng: random.Random, number: int) -> Row:
        # No two share a first name, by which they are sorted, or a last one.
        length = LENGTHS[number % len(LENGTHS)] + beside
        names = zip(rng.sample(_FIRST, length), rng.sample(_LAST, length), strict=True)
        line = [f"{first} {last}" for first, last in names]
        made: Row = {"operation": operation, "line": line, "name": "", "place": 0} | make(rng, line)
        asked = request.format(name=made["name"], place=made["place"])
        text = f"People wait in a line, the first in front: {_as_list(made['line'])}\n{asked}"
        return made | {"input": text, "output": _as_list(made["output"])}

    return row


def _as_list(names: list[str]) -> str:
    return json.dumps(names)


def _latin_square(rng: random.Random, number: int) -> Row:
    symbols = rng.sample(SYMBOLS, 4)
    # Four rows that go together always exist: every Latin rectangle is the top of a square.
    grid: list[list[str]] = []
    while len(grid) < len(symbols):
        tried = rng.sample(symbols, len(symbols))
        if all(a != b for above in grid for a, b in zip(above, tried, strict=True)):
            grid.append(tried)
    output = "\n".join(",".join(row) for row in grid)
    return {"input": ", ".join(symbols), "symbols": symbols, "output": output}


def _sudoku(rng: random.Random, number: int) -> Row:
    puzzle = generate_sudoku(rng, SUDOKU_GIVENS)
    return {"input": puzzle.input, "output": puzzle.output}


def _sentence(level: str) -> Callable[[random.Random, int], Row]:
    def row(rng: random.Random, number: int) -> Row:
        if level == "hard":
            words = rng.sample(_RARE, 4)
        else:
            scenes = rng.sample(_SCENES, 1 if level == "easy" else 2)
            words = [w for scene in scenes for w in rng.sample(scene, 4 // len(scenes))]
        # Not good English, yet it has what the rule asks for.
        output = f"We saw a {words[0]}, a {words[1]}, a {words[2]} and a {words[3]} yesterday."
        return {"input": ", ".join(words), "words": words, "output": output}

    return row


_MAKERS: dict[str, Callable[[random.Random, int], Row]] = {
    **{f"line_{operation}": _line(operation) for operation in LINES},
    "latin_square": _latin_square,
    "sudoku": _sudoku,
    **{f"sentence_{level}": _sentence(level) for level in ("easy", "medium", "hard")},
}


def line_results(doc: Row, results: list[str]) -> dict[str, float]:
    """Return whether a list of names is right, as lm-eval's `process_results`.

    It is the first text in square brackets, cut at commas; quotation marks do not count. Where a
    place is free, every outcome of it is right. A shuffled line must be another one.
    """
    found = re.search(r"\[([^\[\]]*)\]", results[0])
    names = [name.strip().strip("\"'") for name in found[1].split(",")] if found else []
    line, name = list(doc["line"]), doc["name"]
    operation, _, free = doc["operation"].partition("_")
    places = range(len(line) + 1)
    if operation == "shuffle":
        right = names != line and sorted(names) == sorted(line)
    elif free != "random":
        right = names == json.loads(doc["output"])
    elif operation == "insert":
        right = names in [[*line[:i], name, *line[i:]] for i in places]
    elif operation == "remove":
        right = names in [line[:i] + line[i + 1 :] for i in places[:-1]]
    else:
        right = names in [[*line[:i], name, *line[i + 1 :]] for i in places[:-1]]
    return {"solved": float(right)}


def latin_square_results(doc: Row, results: list[str]) -> dict[str, float]:
    """Return whether the first four lines that are permutations of the symbols are a square.

    Lines of another kind around them do not count.
    """
    symbols = list(doc["symbols"])
    lines = [[cell.strip() for cell in line.split(",")] for line in results[0].splitlines()]
    rows = [line for line in lines if sorted(line) == sorted(symbols)][: len(symbols)]
    return {"solved": float(_is_latin(rows, symbols))}


def _is_latin(rows: list[list[str]], symbols: list[str]) -> bool:
    whole = sorted(symbols)
    columns = [list(column) for column in zip(*rows, strict=True)]
    return len(rows) == len(whole) and all(sorted(unit) == whole for unit in rows + columns)


def sudoku_results(doc: Row, results: list[str]) -> dict[str, float]:
    """Return whether the first four lines of four digits, spaces and commas aside, solve it."""
    lines = [re.sub("[ ,]", "", line) for line in results[0].splitlines()]
    grid = [line for line in lines if re.fullmatch("[0-9]{4}", line)][:4]
    return {"solved": float(is_solved("sudoku", doc["input"], "\n".join(grid)))}


def _forms(word: str) -> set[str]:
    """A word, and it with -s, -'s, -ed and -ing as they are spelt: of "bee" there is no "been"."""
    stems = [word]
    if re.search("[^aeiouy]e$", word):  # hike, hiking; but of bee no being
        stems = [word[:-1]]
    elif re.search("(^|[^aeiou])[aeiou][^aeiouwxy]$", word):  # pet, petting; market, marketing
        is_short = len(re.findall("[aeiouy]+", word)) == 1
        stems = [word + word[-1], *([] if is_short else [word])]
    if re.search("[^aeiou]y$", word):
        plural, past = {f"{word[:-1]}ies"}, {f"{word[:-1]}ied"}
    else:
        hisses = re.search("(s|x|z|ch|sh)$", word) is not None
        plural = {f"{word}es"} if hisses else {f"{word}s"}
        plural |= {f"{word}es"} if word.endswith("o") else set()
        past = {f"{word}d"} if word.endswith("e") else {f"{stem}ed" for stem in stems}
    owned = {f"{word}'s", f"{word}\u2019s"}
    return {word, *owned, *plural, *past, *(f"{stem}ing" for stem in stems)}


def sentence_results(doc: Row, results: list[str]) -> dict[str, float]:
    """Return whether the answer is one sentence with all four words, as far as a rule can tell.

    It begins with a capital letter, ends with its only full stop, question or exclamation mark,
    has each given word, alone or with an ending (`_forms`), has more words than those, and no word
    twice in a row, which is what tokens do that were chosen at once.
    """
    text = results[0].strip().strip('"')
    words = re.findall(r"[^\W\d_]+(?:['\u2019-][^\W\d_]+)*", text.lower())
    one = re.fullmatch(r"[^.!?\n]+[.!?]", text) is not None and text[0].isupper()
    said = {part for word in words for part in (word, *re.split("[\u2010-]", word))}
    used = all(said & _forms(wanted) for wanted in doc["words"])
    stutters = any(a == b for a, b in pairwise(words))
    right = one and used and not stutters and len(words) > len(doc["words"])
    return {"solved": float(right)}
