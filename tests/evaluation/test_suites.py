"""Named evaluations: the published settings, cell by cell, and a tiny model through all of them."""

from __future__ import annotations

import json
from fractions import Fraction

import pytest
from commands import failed
from test_evaluate import result
from tiny import write_dream_folder

from softmask.cli.main import main
from softmask.evaluation.config import EvalConfig, model_args
from softmask.evaluation.suites import (
    FULL,
    HALF,
    QUARTER,
    SUITES,
    against_published,
    cells,
    suite_table,
)

CONFIG = EvalConfig(tasks=("any",))


def test_the_dream_suite_is_the_papers_settings() -> None:
    lengths = {part.task: part.tokens for part in SUITES["dream"].parts}
    assert lengths == {
        "humaneval_instruct": 768,
        "humaneval_plus_instruct": 768,
        "mbpp_instruct": 512,
        "mbpp_plus_instruct": 512,
        "gsm8k_cot": 256,
        "math500": 512,
    }
    found = cells(SUITES["dream"], model_args({"pretrained": "x"}), CONFIG)
    assert len(found) == 6 * 3 * 2
    for cell in found:
        assert (cell.args.temperature, cell.args.top_p, cell.args.alg) == (0.1, 0.9, "entropy")
        assert cell.args.softmasking is (cell.mode == "soft")
        assert cell.config.num_fewshot == 0
        assert cell.config.apply_chat_template
    steps = {
        (cell.part.task, cell.fraction): cell.args.sampling(cell.args.max_new_tokens, {}).steps
        for cell in found
    }
    assert steps["humaneval_instruct", FULL] == 768
    assert steps["humaneval_instruct", QUARTER] == 192
    assert steps["gsm8k_cot", HALF] == 128


def test_what_is_given_wins_over_the_suite_and_k_concerns_the_soft_cells_alone() -> None:
    args = model_args({"temperature": 0.0, "max_new_tokens": 32, "mixinputs_k": 3})
    found = cells(SUITES["dream"], args, CONFIG, tasks=["gsm8k_cot"], fractions=[FULL])
    plain, soft = found
    assert (plain.mode, soft.mode) == ("plain", "soft")
    assert plain.args.mixinputs_k is None
    assert soft.args.mixinputs_k == 3
    assert {cell.args.temperature for cell in found} == {0.0}
    assert {cell.args.max_new_tokens for cell in found} == {32}
    assert plain.folder == "plain/gsm8k_cot@1_1"


def test_what_is_given_wins_also_where_it_is_the_default_of_other_evaluations(capsys) -> None:
    args = model_args({"estimator": "masks", "mc_num": 128})
    named = {"estimator", "mc_num"}
    tasks = ["arc_challenge", "mmlu"]
    for cell in cells(SUITES["llada"], args, CONFIG, modes=["plain"], tasks=tasks, named=named):
        assert (cell.args.estimator, cell.args.mc_num) == ("masks", 128)
    for words, message in (
        (["--nfe", "0.5"], "--fractions, not --nfe"),
        (["--model-args", "nfe=0.5"], "--fractions, not --nfe"),
        (["--no-soft-mask"], "--modes, not --soft-mask"),
        (["--steps", "16"], "--steps would be the same at each number of forwards"),
    ):
        assert message in failed(capsys, "eval", "suite", "dream", *words)


def test_soft_cells_without_parameters_are_refused_before_the_plain_ones_run(
    tmp_path, capsys, monkeypatch
) -> None:
    folder = write_dream_folder(tmp_path / "plain", chat=True, max_position_embeddings=1024)
    monkeypatch.setattr("softmask.cli.eval_suite.load_lm", None)
    words = ["eval", "suite", "parallelbench", "--model", str(folder), "--limit", "1"]
    said = failed(capsys, *words, "--out", str(tmp_path / "out"))
    assert "has no transparency_config.json" in said
    assert "of a suite --modes plain" in said
    assert not (tmp_path / "out").exists()


def test_the_instruct_suite_is_the_release_scripts() -> None:
    found = cells(SUITES["instruct"], model_args({}), CONFIG, modes=["plain"])
    settings = {c.part.task: (c.args.max_new_tokens, c.config.num_fewshot) for c in found}
    assert settings == {
        "mmlu_generative": (128, 4),
        "mmlu_pro": (128, 4),
        "ifeval": (1280, 0),
        "gpqa_main_n_shot": (None, 5),
    }


def test_binary_is_an_older_name_of_the_plain_mode() -> None:
    old, new = (
        cells(SUITES["dream"], model_args({}), CONFIG, modes=modes)
        for modes in (["soft", "binary"], ["soft", "plain"])
    )
    assert old == new


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"tasks": ["gsm8k"]}, "task must be one of humaneval_instruct"),
        ({"modes": ["sofft"]}, "mode must be one of plain, soft"),
    ],
)
def test_what_a_suite_does_not_have_is_an_error(choice, message) -> None:
    with pytest.raises(ValueError, match=message):
        cells(SUITES["dream"], model_args({}), CONFIG, **choice)


def test_the_table_stands_beside_the_published_cells(capsys) -> None:
    from rich.console import Console

    suite = SUITES["dream"]
    found = cells(suite, model_args({}), CONFIG, tasks=["mbpp_plus_instruct"], fractions=[HALF])
    row = {
        "task": "mbpp_plus_instruct",
        "metric": "pass_at_1",
        "filter": "code_block",
        "stderr": 0.02,
        "n": 378,
        "tokens": 100.0,
    }
    values = zip(found, (0.391, 0.541), (256.0, 255.5), strict=True)
    rows = [(cell, [row | {"value": v, "forwards": f}]) for cell, v, f in values]
    Console(width=80).print(suite_table(suite, rows))
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    here = next(i for i, line in enumerate(lines) if "mbpp_plus_instruct" in line)
    assert lines[here][1:] == ["1/2", "39.1", "(2.0)", "54.1", "(2.0)", "256", "/", "256"]
    assert lines[here + 1] == ["published,", "Dream-7B", "39.6", "54.7"]


def test_a_cell_whose_score_nothing_had_stays_empty(capsys) -> None:
    from rich.console import Console

    found = cells(SUITES["dream"], model_args({}), CONFIG, fractions=[HALF])
    other = {"task": "x", "metric": "y", "filter": "z", "value": 0.5, "stderr": None, "n": 2}
    Console(width=80).print(suite_table(SUITES["dream"], [(cell, [other]) for cell in found]))
    assert "mbpp_plus_instruct" in capsys.readouterr().out
    assert against_published(SUITES["dream"], [(cell, [other]) for cell in found]) is None


def test_lladas_suite_is_its_own_evaluation() -> None:
    found = {c.part.task: c for c in cells(SUITES["llada"], model_args({}), CONFIG)}
    assert {cell.mode for cell in found.values()} == {"plain"}
    gsm8k, arc, mmlu = found["gsm8k"].args, found["arc_challenge"].args, found["mmlu"].args
    assert gsm8k.sampling(1024, {}).step_schedule == "even"
    assert (gsm8k.max_new_tokens, gsm8k.nfe, gsm8k.alg) == (1024, 1.0, "maskgit_plus")
    assert (arc.estimator, arc.mc_num, mmlu.mc_num) == ("llada", 128, 1)
    assert found["winogrande"].config.num_fewshot == 5
    assert found["gsm8k"].config.num_fewshot is None
    guided = cells(SUITES["llada"], model_args({"guidance": 0.5, "mc_num": 4}), CONFIG)
    assert {(cell.args.guidance, cell.args.mc_num) for cell in guided} == {(0.5, 4)}


def test_lladas_instruct_models_have_the_published_lengths_blocks_and_ends() -> None:
    def settings(suite: str) -> dict[str, tuple[object, ...]]:
        found = {}
        for cell in cells(SUITES[suite], model_args({}), CONFIG):
            one = cell.args.sampling(cell.args.max_new_tokens, {})
            ends = (one.late_ends, one.suppress_eos)
            found[cell.part.task] = (cell.mode, one.steps, one.block_length, *ends)
        return found

    assert settings("llada-instruct") == {
        "gsm8k_cot": ("plain", 512, None, "published", False),
        "minerva_math": ("plain", 512, None, "published", False),
        "humaneval_instruct": ("plain", 512, None, "no", True),
        "mbpp_instruct": ("plain", 256, None, "published", False),
    }
    assert settings("llada-instruct-blocks") == {
        "gsm8k_cot": ("plain", 256, 8, "no", False),
        "minerva_math": ("plain", 512, 64, "no", False),
    }
    assert settings("llada-1.5") == {
        "gsm8k_cot": ("plain", 256, 16, "published", False),
        "minerva_math": ("plain", 1024, 128, "published", False),
        "humaneval_instruct": ("plain", 512, 32, "published", False),
        "mbpp_instruct": ("plain", 512, 32, "published", False),
    }


def test_a_score_lies_so_many_standard_errors_from_the_published_one(capsys) -> None:
    from rich.console import Console

    suite = SUITES["dream"]
    found = cells(suite, model_args({}), CONFIG, tasks=["mbpp_plus_instruct"], fractions=[HALF])
    row = {"task": "mbpp_plus_instruct", "metric": "pass_at_1", "filter": "code_block", "n": 378}
    rows = [[row | {"value": v, "stderr": 0.025, "forwards": 256.0}] for v in (0.396, 0.400)]
    table = against_published(suite, list(zip(found, rows, strict=True)))
    Console(width=90).print(table)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    here = [line for line in lines if line[:1] == ["mbpp_plus_instruct"]]
    # Of the soft one: 0.147 / sqrt(0.025^2 + 0.547 * 0.453 / 378) = 4.1.
    assert here == [
        "mbpp_plus_instruct 1/2 plain Dream-7B 39.6 39.6 (2.5) +0.0 +0.0".split(),
        "mbpp_plus_instruct 1/2 soft Dream-7B 54.7 40.0 (2.5) -14.7 -4.1".split(),
    ]
    unknown = cells(suite, model_args({}), CONFIG, tasks=["math500"], fractions=[HALF])
    score = row | {"task": "math500", "metric": "math_verify", "filter": "none"}
    assert against_published(suite, [(unknown[0], [score | {"value": 0.4}])]) is None


def test_against_published_needs_published_scores(model, data, tmp_path, capsys) -> None:
    assert main(words("puzzles", model, data, tmp_path, "--against", "published")) == 2
    assert "no published score is known for the suite puzzles" in capsys.readouterr().err


def words(suite: str, model, data, out, *more: str) -> list[str]:
    return [
        *("eval", "suite", suite, "--model", str(model), "--data-dir", str(data)),
        *("--out", str(out), "--limit", "1", "--device", "cpu", "--max-new-tokens", "8", *more),
    ]


def test_a_suite_runs_cell_by_cell_and_is_not_run_twice(
    model,
    data,
    tmp_path,
    capsys,
    monkeypatch,
) -> None:
    few = ("--tasks", "sudoku_4x4_4_plain", "--fractions", "1,1/2")
    assert main(words("puzzles", model, data, tmp_path / "s", *few)) == 0
    table = capsys.readouterr().out
    assert table.count("sudoku_4x4_4_plain") == 2
    written = sorted(
        str(p.parent.relative_to(tmp_path / "s")) for p in tmp_path.rglob("results.json")
    )
    assert written == sorted(
        f"{mode}/sudoku_4x4_4_plain@{fraction}"
        for mode in ("plain", "soft")
        for fraction in ("1_1", "1_2")
    )
    run = json.loads((tmp_path / "s/soft/sudoku_4x4_4_plain@1_2/run.json").read_text())
    assert run["soft_mask"]["mixinputs_k"] == 2
    assert run["model_args"]["nfe"] == 0.5
    monkeypatch.setattr("softmask.evaluation.harness.SoftMaskLM._generate", None)
    assert main(words("puzzles", model, data, tmp_path / "s", *few)) == 0
    assert capsys.readouterr().out == table


def test_a_suite_without_soft_mask_parameters_is_an_error(data, tmp_path, capsys) -> None:
    plain = write_dream_folder(tmp_path / "m")
    few = ("--tasks", "countdown_cd3_plain", "--fractions", "1", "--modes", "soft")
    assert main(words("puzzles", plain, data, tmp_path / "s", *few)) == 2
    assert "no transparency_config.json" in capsys.readouterr().err


@pytest.mark.parametrize("fractions", ["2", "0", "x", "1/0"])
def test_a_fraction_that_is_none_is_an_error(model, data, tmp_path, fractions, capsys) -> None:
    assert main(words("puzzles", model, data, tmp_path, "--fractions", fractions)) == 2
    assert "fractions" in capsys.readouterr().err


# Of tasks that are asked and judged in one way one by default, all among the slow tests.
DREAM = [part.task for part in SUITES["dream"].parts]
FEW = ["humaneval_instruct", "mbpp_plus_instruct", "gsm8k_cot"]


@pytest.mark.parametrize(
    ("tasks", "published"),
    [(FEW, 2), pytest.param(DREAM, 3, marks=pytest.mark.slow)],
    ids=["few", "all"],
)
def test_the_dream_suite_runs_programs_included(
    model, data, tmp_path, capsys, tasks, published
) -> None:
    some = ("--fractions", "1/4", "--tasks", ",".join(tasks))
    refused = words("dream", model, data, tmp_path / "s", *some)
    assert main(refused) == 2
    assert "say that it may with --confirm-run-unsafe-code" in capsys.readouterr().err
    more = ["--confirm-run-unsafe-code", "--batch-size", "2", "--against", "published"]
    assert main([*refused, *more]) == 0
    table, compared = capsys.readouterr().out.split("against the published scores")
    assert "humaneval_instruct" in compared
    for task in tasks:
        assert table.count(task) == 1
    assert table.count("published, Dream-7B") == published
    assert len(list((tmp_path / "s").rglob("results.json"))) == 2 * len(tasks)
    sample = (
        tmp_path / "s/soft/humaneval_instruct@1_4/samples_humaneval_instruct.jsonl"
    ).read_text()
    attempt = json.loads(sample)["filtered_resps"][0][0]
    assert attempt["program"].startswith("def double(x):")
    assert attempt["verdicts"]["pass@1"]["passed"] is False
    rows = result(tmp_path / "s/soft/mbpp_plus_instruct@1_4")["summary"]
    assert {row["metric"] for row in rows} == {"pass_at_1", "pass_at_1_plus"}


@pytest.mark.slow  # the suite before it goes the same way, with programs
def test_the_planning_suite_runs_whole(model, data, tmp_path, capsys) -> None:
    few = ("--fractions", "1/4", "--modes", "binary")
    assert main(words("planning", model, data, tmp_path / "s", *few)) == 0
    tasks = {part.task for part in SUITES["planning"].parts}
    folders = {path.parent.name for path in tmp_path.rglob("results.json")}
    assert folders == {f"{task}@1_4" for task in tasks}
    assert Fraction(1, 4) in SUITES["planning"].fractions
    row = result(tmp_path / "s/plain/countdown_cd3@1_4")["summary"][0]
    assert row["forwards"] <= 2


@pytest.mark.slow
def test_the_instruct_suite_runs_whole_on_a_stood_in_hub(
    model, tmp_path, capsys, monkeypatch
) -> None:
    monkeypatch.setattr("datasets.load_dataset", stood_in_hub)
    words = ["eval", "suite", "instruct", "--model", str(model), "--limit", "1"]
    words += ["--out", str(tmp_path / "s"), "--device", "cpu", "--batch-size", "8"]
    words += ["--max-new-tokens", "8", "--mc-num", "4"]
    assert main(words) == 0
    table = capsys.readouterr().out
    for part in SUITES["instruct"].parts:
        assert part.task in table
    rows = result(tmp_path / "s/soft/mmlu_generative@1_1")["summary"]
    whole = next(row for row in rows if row["task"] == "mmlu_generative")
    assert whole["n"] == 57
    assert whole["forwards"] <= 8


def stood_in_hub(path: str, name: str | None = None, **_kwargs):
    """A few rows in the layout of each data set that the suite reads."""
    from datasets import Dataset, DatasetDict

    choices = ["one", "two", "three", "four"]
    if path == "cais/mmlu":
        rows = [{"question": "How many?", "choices": choices, "answer": 1, "subject": name}] * 5
        return DatasetDict({split: Dataset.from_list(rows) for split in ("test", "dev")})
    if path == "TIGER-Lab/MMLU-Pro":
        subjects = ("biology", "business", "chemistry", "computer science", "economics")
        subjects += ("engineering", "health", "history", "law", "math", "other", "philosophy")
        rows = [
            {
                "question": "How many?",
                "options": choices,
                "answer": "B",
                "answer_index": 1,
                "cot_content": "A: Let's think step by step. The answer is (B).",
                "category": subject,
            }
            for subject in (*subjects, "physics", "psychology")
            for _ in range(5)
        ]
        return DatasetDict({s: Dataset.from_list(rows) for s in ("test", "validation")})
    if path == "Idavidrein/gpqa":
        row = {f"Incorrect Answer {i}": choices[i] for i in (1, 2, 3)}
        rows = [row | {"Question": f"How many {i}?", "Correct Answer": "one"} for i in range(8)]
        return DatasetDict({"train": Dataset.from_list(rows)})
    assert path == "google/IFEval"
    row = {"key": 1, "prompt": "No commas.", "instruction_id_list": ["punctuation:no_comma"]}
    return DatasetDict({"train": Dataset.from_list([row | {"kwargs": [{}]}])})


@pytest.mark.slow
@pytest.mark.parametrize("soft", [False, True])
def test_upstreams_likelihood_tasks_run_on_a_stood_in_hub(
    model, tmp_path, monkeypatch, soft
) -> None:
    monkeypatch.setattr("datasets.load_dataset", stood_in_questions)
    tasks = ["arc_easy", "hellaswag", "piqa", "winogrande", "race", "mmlu_abstract_algebra"]
    words = ["eval", "--tasks", ",".join(tasks), "--model", str(model), "--limit", "2"]
    words += ["--out", str(tmp_path / "r"), "--device", "cpu", "--mc-num", "4"]
    assert main([*words, "--soft-mask" if soft else "--no-soft-mask"]) == 0
    rows = result(tmp_path / "r")["summary"]
    assert {row["task"] for row in rows} == set(tasks)
    for row in rows:
        assert row["n"] == 2
        assert row["nats_error"] >= 0
        assert row["forwards"] >= (4 if soft else 2)


def stood_in_questions(path: str, name: str | None = None, **_kwargs):
    """Two rows in the layout of each data set of multiple choice."""
    from datasets import Dataset, DatasetDict

    text = "the other one was there"
    choices = {"text": ["on", "then on", "the one"], "label": ["A", "B", "C"]}
    problems = [{"question": "Who was _ ?", "options": ["on", "he", "she", "it"], "answer": "B"}]
    rows = {
        "allenai/ai2_arc": {"question": text, "choices": choices, "answerKey": "B"},
        "Rowan/hellaswag": {
            **{"ctx_a": text, "ctx_b": "it", "activity_label": "Walking", "label": "1"},
            "endings": ["was on", "was there", "went", "stood"],
        },
        "baber/piqa": {"goal": text, "sol1": "go on", "sol2": "be there", "label": 1},
        "allenai/winogrande": {
            **{"sentence": "Tom saw Ann as _ was there.", "answer": "2"},
            **{"option1": "Tom", "option2": "Ann"},
        },
        "EleutherAI/race": {"article": text, "problems": str(problems)},
        "cais/mmlu": {"question": text, "choices": ["a", "b", "c", "d"], "answer": 2},
    }[path]
    splits = ("train", "validation", "test", "dev")
    return DatasetDict({split: Dataset.from_list([rows] * 2) for split in splits})
