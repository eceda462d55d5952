"""Infilling tasks: what a hole stands between, how long it is, and what counts as right."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from evaluation_files import INFILLING_ROWS, lines_of, write_code_files
from hypothesis import given, settings
from hypothesis import strategies as st
from lm_eval.api.instance import Instance
from official import official
from parrot import evaluate_parrot

import softmask
from softmask.cli.main import main
from softmask.decoding.healing import open_hole
from softmask.decoding.prompts import encode
from softmask.evaluation.config import model_args
from softmask.evaluation.harness import SoftMaskLM
from softmask.evaluation.responses import Responses
from softmask.hub.load import load

TASKS = [
    *("humaneval_single_line_infilling", "humaneval_multi_line_infilling"),
    *("humaneval_random_span_infilling", "humaneval_random_span_infilling_light"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_code_files(tmp_path_factory.mktemp("infilling"))


@pytest.fixture(scope="module")
def checkpoint(model):
    return load(str(model), device="cpu")


def filled(checkpoint, before: str, after: str, reference: str = "", **args):
    """What the model class of the harness says, and its record."""
    lm = SoftMaskLM.around(checkpoint, model_args(args), Responses())
    told = {"suffix": after, "reference": reference, "max_gen_toks": 32}
    (text,) = lm.generate_until(
        [Instance("generate_until", {}, (before, told), 0, ("task", 0, 1))], disable_tqdm=True
    )
    (record,) = lm.responses.by_key.values()
    return text, record


def test_references_are_right_and_other_answers_wrong(folder) -> None:
    # Of each row, which stands in two files, the reference the first time.
    right = iter([True, False, True, False])
    results, model = evaluate_parrot(
        ["humaneval_infilling"],
        folder,
        lambda doc: doc["canonical_solution"] if next(right) else "rn 3 ",
    )
    passed = [results["results"][task]["pass@1,create_test"] for task in TASKS]
    assert passed == [0, 1, 1, 0]
    assert results["groups"]["humaneval_infilling"]["pass@1,create_test"] == 0.5
    (sample,) = results["samples"]["humaneval_random_span_infilling_light"]
    assert sample["filtered_resps"][0][0]["program"] == "def double(x):\n    return 3 * x\n"
    # The model is given both sides to the letter, and what an oracle may look at.
    row = INFILLING_ROWS[0]
    context, told = model.asked[0]
    assert context == row["prompt"]
    assert told["suffix"] == row["suffix"]
    assert told["reference"] == row["canonical_solution"]


def test_lines_of_santacoder_are_right_to_the_letter_and_counted_by_language(folder) -> None:
    right = {"py": "b = 2", "js": "b  = 2", "java": "b = 2"}
    results, _ = evaluate_parrot(["santacoder_fim"], folder, lambda doc: right[doc["language"]])
    found = results["results"]["santacoder_fim"]
    assert found["exact_match,none"] == pytest.approx(2 / 3)
    assert [found[f"exact_match_{name},none"] for name in right] == [1, 0, 1]


@pytest.mark.parametrize("healing", [False, True])
def test_a_hole_has_the_tokens_that_are_asked_for(checkpoint, healing) -> None:
    asked = {"token_healing": healing, "softmasking": False}
    _, record = filled(checkpoint, "on", "no", "abc", hole="oracle", **asked)
    assert record["tokens"] == (5 if healing else 3)
    _, record = filled(checkpoint, "on", "no", hole=3, **asked)
    assert record["tokens"] == (5 if healing else 3)
    # A hole is not larger than an answer may be.
    _, record = filled(checkpoint, "on", "no", hole=9, max_new_tokens=4, **asked)
    assert record["tokens"] == (6 if healing else 4)
    _, record = filled(checkpoint, "on", "no", **asked)
    assert [draft["tokens"] for draft in sorted(record["drafts"], key=lambda one: one["tokens"])]
    assert len(record["drafts"]) == 4  # 64 and 32 tokens are both 32 here


def test_of_several_lengths_the_likeliest_stays_and_all_are_paid_for(checkpoint) -> None:
    text, record = filled(checkpoint, "on and on", "no", hole="1/2/6")
    scores = [draft["score"] for draft in record["drafts"]]
    assert scores == sorted(scores, reverse=True)
    assert (text, record["tokens"]) == (record["text"], record["drafts"][0]["tokens"])
    assert record["forwards"] == sum(draft["forwards"] for draft in record["drafts"]) == 9
    for draft in record["drafts"]:
        alone, _ = filled(checkpoint, "on and on", "no", hole=draft["tokens"])
        assert alone == draft["text"]


def test_healing_writes_a_token_whole_that_the_cut_went_through(checkpoint) -> None:
    # "the" is one token of this model: with both ends open it alone fits.
    healed, record = filled(checkpoint, "on t", "e on", "h", hole="oracle", token_healing=True)
    assert (healed, record["tokens"]) == ("h", 1)
    plain, record = filled(checkpoint, "on t", "e on", "h", hole="oracle")
    assert (len(plain), record["tokens"]) == (1, 1)


# A tokenizer with a normalizer of its own, as Qwen2's, makes these forms of others.
NORMAL = st.text(max_size=12).filter(lambda text: unicodedata.is_normalized("NFC", text))


@settings(max_examples=30)
@given(before=NORMAL, after=NORMAL, heal=st.booleans())
def test_the_texts_beside_a_hole_stay_as_they_are(checkpoint, before, after, heal) -> None:
    hole = open_hole(
        checkpoint, before, after, lambda text: encode(checkpoint, text, control=False), heal=heal
    )
    left, right = (checkpoint.decode(ids) for ids in (hole.before_ids, hole.after_ids))
    assert (left + hole.begins, hole.ends + right) == (before, after)
    assert hole.middle(f"{hole.begins}the{hole.ends}") == "the"
    assert (hole.form is not None) == (heal and bool(before + after))


def test_a_canvas_that_does_not_fit_is_cut_far_from_the_hole(checkpoint) -> None:
    # Characters are tokens here: 4 of a hole, 16 in all.
    _, record = filled(checkpoint, "a" * 20, "b" * 8, hole=4, max_length=16)
    assert (record["prompt_tokens"], record["prompt_tokens_cut"]) == (12, 16)
    _, record = filled(checkpoint, "a" * 20, "b" * 30, hole=4, max_length=16)
    assert (record["prompt_tokens"], record["prompt_tokens_cut"]) == (12, 38)
    with pytest.raises(ValueError, match="a hole of 16 tokens leaves no room"):
        filled(checkpoint, "a", "b", hole=16, max_length=16)


@pytest.mark.parametrize(("hole", "masks"), [("own", 4), ("own:2", 2)])
def test_a_hole_whose_length_the_model_finds_is_filled_as_generate_fills_it(hole, masks) -> None:
    dreamon = official("dreamon")
    text, record = filled(dreamon, "some text ", " and so", hole=hole, max_new_tokens=9)
    whole = softmask.generate(
        dreamon,
        f"some text [[{masks}]] and so",
        infill=True,
        max_new_tokens=9,
        alg="entropy",
        temperature=0.0,
        top_p=None,
    )
    assert f"some text {text} and so" == whole.text
    assert record["forwards"] == whole.forwards
    assert record["tokens"] == len(whole.token_ids) - record["prompt_tokens"]
    assert (record["tokens"] > masks) == (masks == 4)


def test_what_does_not_go_with_a_length_of_its_own_is_one_sentence(checkpoint) -> None:
    with pytest.raises(ValueError, match="does not find the length of a hole: give hole a number"):
        filled(checkpoint, "a", "b", hole="own")
    with pytest.raises(ValueError, match="hole=own commits one token a step"):
        model_args({"hole": "own", "nfe": 0.5})
    with pytest.raises(ValueError, match="make it smaller by max_new_tokens"):
        filled(official("dreamon"), "a", "b", hole="own", max_length=16)


@pytest.mark.parametrize("hole", [0, "4-8", "4/", "long", "own:0"])
def test_a_length_that_is_none_is_one_sentence(hole) -> None:
    with pytest.raises(ValueError, match="hole must be a number of tokens, several as in 4/8"):
        model_args({"hole": hole})


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--apply-chat-template"], "fills in a hole of a text, which is no conversation"),
        (["--hole", "none"], "hole must be a number of tokens"),
        ([], ":1: a row needs the fields task_id, prompt, suffix"),
    ],
)
def test_bad_input_is_one_sentence_before_anything_runs(words, message, tmp_path, capsys) -> None:
    row = INFILLING_ROWS[0] | {"suffix": ""}
    del row["suffix"]
    (tmp_path / "HumanEval-RandomSpanLight.jsonl").write_bytes(lines_of([row]))
    command = ["eval", "--tasks", "humaneval_random_span_infilling_light", "--model", "/none"]
    command += ["--confirm-run-unsafe-code", "--data-dir", str(tmp_path), *words]
    assert main([*command, "--out", str(tmp_path / "out")]) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert message in error
    assert not (tmp_path / "out").exists()
