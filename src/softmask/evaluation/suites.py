"""Named evaluations: the published settings, cell by cell.

A cell is one task, decoded plainly ("plain") or soft-masked ("soft"), with one forward for each
token, for two or for four. Settings of `dream` are those of the paper (arXiv 2510.17206: prompts
without examples, temperature 0.1, top_p 0.9, rule entropy); those of `instruct` are the release
script of Dream-v0-Instruct-7B; those of `planning` are Dream's own evaluation of its base model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from rich.table import Table

from ..config import require_choice
from ..reporting.tables import light_table
from .config import EvalConfig, ModelArgs

MODES = ("plain", "soft")
# Older names of modes, in commands and in the folders of finished evaluations.
MODE_ALIASES = {"binary": "plain"}
FULL, HALF, QUARTER = Fraction(1), Fraction(1, 2), Fraction(1, 4)
FRACTIONS = (FULL, HALF, QUARTER)
PUBLISHED = {"temperature": 0.1, "top_p": 0.9, "alg": "entropy"}
SUDOKU_GIVENS = range(4, 13)


@dataclass(frozen=True)
class Part:
    """One task of a suite.

    `score` is the column of the table: metric and filter. No `tokens`: a likelihood task, which
    has no steps to save.
    """

    task: str
    tokens: int | None
    score: tuple[str, str]
    num_fewshot: int | None = 0


@dataclass(frozen=True)
class Suite:
    """Tasks with the settings they share."""

    title: str
    parts: tuple[Part, ...]
    chat: bool
    sampling: Mapping[str, Any]
    fractions: tuple[Fraction, ...] = (FULL,)
    # (task, fraction, mode) -> per cent, by model, where the publication's value is known.
    published: Mapping[str, Mapping[tuple[str, Fraction, str], float]] = field(default_factory=dict)


def _cells(
    task: str, fraction: Fraction, plain: float, soft: float
) -> dict[tuple[str, Fraction, str], float]:
    return {(task, fraction, "plain"): plain, (task, fraction, "soft"): soft}


# From table 3 of the paper: fine-tuning without soft-masking (there "binary") and with it, k = 1.
PUBLISHED_CELLS = {
    "Dream-7B": _cells("humaneval_instruct", QUARTER, 18.9, 25.6)
    | _cells("mbpp_instruct", QUARTER, 26.6, 32.8)
    | _cells("mbpp_plus_instruct", QUARTER, 29.2, 36.7)
    | _cells("mbpp_plus_instruct", HALF, 39.6, 54.7)
    | _cells("humaneval_plus_instruct", FULL, 53.0, 50.0),
    "Dream-Coder-7B": _cells("mbpp_instruct", QUARTER, 25.9, 33.2)
    | _cells("mbpp_instruct", HALF, 49.8, 56.2)
    | _cells("humaneval_instruct", FULL, 75.7, 76.2),
}

SUITES = {
    "dream": Suite(
        "Dream-7B and Dream-Coder-7B, as in the paper",
        (
            Part("humaneval_instruct", 768, ("pass@1", "create_test")),
            Part("humaneval_plus_instruct", 768, ("pass@1", "create_test")),
            # Not upstream's extract_code, which takes the first word of a program for a language.
            Part("mbpp_instruct", 512, ("pass_at_1", "code_block")),
            Part("mbpp_plus_instruct", 512, ("pass_at_1", "code_block")),
            Part("gsm8k_cot", 256, ("exact_match", "flexible-extract")),
            Part("math500", 512, ("math_verify", "none")),
        ),
        chat=True,
        sampling=PUBLISHED,
        fractions=FRACTIONS,
        published=PUBLISHED_CELLS,
    ),
    "instruct": Suite(
        "Dream-v0-Instruct-7B, knowledge and instructions",
        (
            Part("mmlu_generative", 128, ("exact_match", "get_response"), 4),
            Part("mmlu_pro", 128, ("exact_match", "custom-extract"), 4),
            Part("ifeval", 1280, ("prompt_level_strict_acc", "none")),
            Part("gpqa_main_n_shot", None, ("acc", "none"), 5),
        ),
        chat=True,
        sampling=PUBLISHED,
    ),
    "planning": Suite(
        "Dream-v0-Base-7B, planning, 8 examples",
        (
            # Dream's script says 32 for cd4 (which the longest 22 of 1,000 references exceed) and
            # 24 for Sudoku; the other two are as long as their longest reference needs.
            Part("countdown_cd3", 24, ("solved", "none"), None),
            Part("countdown_cd4", 32, ("solved", "none"), None),
            Part("countdown_cd5", 48, ("solved", "none"), None),
            *(Part(f"sudoku_4x4_{n}", 24, ("solved", "none"), None) for n in SUDOKU_GIVENS),
        ),
        chat=False,
        sampling={"temperature": 0.0, "alg": "entropy"},
        fractions=FRACTIONS,
    ),
    "puzzles": Suite(
        "planning for models trained on these puzzles, no examples",
        (
            Part("countdown_cd3_plain", 24, ("solved", "none")),
            Part("countdown_cd4_plain", 36, ("solved", "none")),
            Part("countdown_cd5_plain", 48, ("solved", "none")),
            *(Part(f"sudoku_4x4_{n}_plain", 24, ("solved", "none")) for n in SUDOKU_GIVENS),
        ),
        chat=False,
        # Commits the tokens whose second candidate is far less likely.
        sampling={"temperature": 0.0, "alg": "topk_margin"},
        fractions=FRACTIONS,
    ),
}


@dataclass(frozen=True)
class Cell:
    """One evaluation of a suite; `folder` is its place in the suite's."""

    part: Part
    fraction: Fraction
    mode: str
    args: ModelArgs
    config: EvalConfig

    @property
    def folder(self) -> str:
        """mode/task@1_4: the same below both modes, so that two modes can be compared."""
        name = f"{self.fraction.numerator}_{self.fraction.denominator}"
        return f"{self.mode}/{self.part.task}@{name}"


def cells(
    suite: Suite,
    args: ModelArgs,
    config: EvalConfig,
    *,
    modes: Sequence[str] = MODES,
    fractions: Sequence[Fraction] | None = None,
    tasks: Sequence[str] | None = None,
) -> list[Cell]:
    """The evaluations of a suite, with its settings where `args` gives no others.

    Args:
        args: the model, and the settings of decoding that shall differ from the suite's.
        config: limit, data, system message, permission; its tasks and examples are the suite's.
        modes: of `MODES` and `MODE_ALIASES`.

    Raises:
        ValueError: a mode, a fraction or a task that the suite does not have.
    """
    modes = list(dict.fromkeys(MODE_ALIASES.get(mode, mode) for mode in modes))
    for mode in modes:
        require_choice("mode", mode, MODES)
    known = tuple(part.task for part in suite.parts)
    for task in tasks or ():
        require_choice("task", task, known)
    found = []
    for part in suite.parts:
        if tasks is not None and part.task not in tasks:
            continue
        for fraction in suite.fractions if fractions is None else fractions:
            if part.tokens is None and fraction != FULL:
                continue
            for mode in modes:
                found.append(
                    Cell(
                        part,
                        fraction,
                        mode,
                        _args(suite, part, fraction, mode, args),
                        _config(suite, part, config),
                    )
                )
    return found


def _args(suite: Suite, part: Part, fraction: Fraction, mode: str, args: ModelArgs) -> ModelArgs:
    values: dict[str, Any] = {}
    if part.tokens is not None:
        values = {"max_new_tokens": part.tokens, **suite.sampling}
        values = {n: v for n, v in values.items() if getattr(args, n) is None}
        if args.diffusion_steps is None:
            values["nfe"] = float(fraction)
    # A soft cell without soft-mask parameters must be an error, not a second plain one.
    values["softmasking"] = mode == "soft"
    if mode == "plain":
        values |= dict.fromkeys(["feedback", *args.soft_mask_changes])
    return dataclasses.replace(args, **values)


def _config(suite: Suite, part: Part, config: EvalConfig) -> EvalConfig:
    return dataclasses.replace(
        config,
        tasks=(part.task,),
        num_fewshot=part.num_fewshot if config.num_fewshot is None else config.num_fewshot,
        apply_chat_template=suite.chat,
    )


def score_of(cell: Cell, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The row of a cell's summary that the suite's table shows."""
    wanted = (cell.part.task, *cell.part.score)
    return next(row for row in rows if (row["task"], row["metric"], row["filter"]) == wanted)


def suite_table(suite: Suite, found: Sequence[tuple[Cell, Sequence[dict[str, Any]]]]) -> Table:
    """A row for each task and share of forwards: both modes in per cent, and published values."""
    by_place = {(cell.part.task, cell.fraction, cell.mode): (cell, rows) for cell, rows in found}
    table = light_table(suite.title)
    table.add_column("task", overflow="fold")
    for column in ("NFE", *MODES, "forwards"):
        table.add_column(column, justify="right")
    places = sorted({place[:2] for place in by_place}, key=lambda place: -place[1])
    for part in suite.parts:
        for task, fraction in (place for place in places if place[0] == part.task):
            pair = [by_place.get((task, fraction, mode)) for mode in MODES]
            rows = [None if one is None else score_of(*one) for one in pair]
            spent = [None if row is None else row["forwards"] for row in rows]
            forwards = " / ".join("-" if f is None else f"{f:.0f}" for f in spent)
            table.add_row(task, str(fraction), *map(_show, rows), forwards)
            for model, known in suite.published.items():
                values = [known.get((task, fraction, mode)) for mode in MODES]
                if None not in values:
                    cells_of = [f"{value:.1f}" + 6 * " " for value in values]
                    table.add_row(f"  published, {model}", "", *cells_of, style="dim")
        table.add_section()
    return table


def _show(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    error = "" if row["stderr"] is None else f" ({100 * row['stderr']:.1f})"
    return f"{100 * row['value']:.1f}{error}"
