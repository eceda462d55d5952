"""A stretch of a text written anew: in Python, on a server and on the command line."""

from __future__ import annotations

import dataclasses
import json
import math
from functools import partial

import pytest
import torch
from test_server import post, serving
from tiny import write_dream_folder

import softmask
from softmask.cli.main import main
from softmask.constraints.constraint import Constraint
from softmask.decoding.prompts import encode, encode_holes, first_ids, rules_of
from softmask.decoding.score import pairs_of
from softmask.serving.config import ServeConfig
from softmask.serving.edit_body import EditBody, edit_jobs
from softmask.serving.edits import Span
from softmask.serving.service import Service

TEXT = "One day, Tom went."


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_dream_folder(tmp_path_factory.mktemp("model") / "dream")


@pytest.fixture(scope="module")
def checkpoint(folder):
    return softmask.load(folder, device="cpu")


@pytest.mark.parametrize(
    ("bounds", "replaced", "lengths"),
    [
        ((None, None), 0, [1, 3, 4, 6, 8]),
        ((None, None), 20, [10, 18, 25, 32, 40]),
        ((3, 3), 20, [3]),
        ((2, 4), 1, [2, 3, 4]),
        ((None, 2), 20, [2]),
        ((30, None), 2, [30]),
    ],
)
def test_lengths_lie_evenly_between_the_bounds(bounds, replaced, lengths) -> None:
    assert Span("text", 0, 0, *bounds).lengths(replaced) == lengths


def test_the_draft_with_the_likeliest_tokens_is_kept(checkpoint) -> None:
    edited = softmask.edit(checkpoint, TEXT, 9, 12, min_new_tokens=1, max_new_tokens=3, seed=1)
    assert sorted(draft.tokens for draft in edited.drafts) == [1, 2, 3]
    scores = [draft.score for draft in edited.drafts]
    assert scores == sorted(scores, reverse=True)
    assert (edited.text, edited.replacement) == edited.drafts[0][:2]
    for draft in edited.drafts:
        alone = softmask.edit(
            checkpoint, TEXT, 9, 12, min_new_tokens=draft.tokens, max_new_tokens=draft.tokens
        )
        assert alone.text == draft.text
        assert alone.drafts[0].score == pytest.approx(draft.score)
        assert draft.text == f"One day, {draft.replacement} went."
    # One token: its score is what one forward says of it, among what may be written.
    one = softmask.edit(checkpoint, TEXT, 9, 12, max_new_tokens=1)
    before, behind = (checkpoint.tokenizer(part)["input_ids"] for part in (TEXT[:9], TEXT[12:]))
    canvas = torch.tensor([[*before, checkpoint.model.mask_id, *behind]])
    with torch.no_grad():
        logits = checkpoint.model(canvas, rows=torch.tensor([len(before)])).logits[0]
    logits[list(rules_of(checkpoint, infill=True).suppressed)] = -math.inf
    assert one.drafts[0].score == pytest.approx(logits.log_softmax(0).max().item(), rel=1e-4)


def test_edits_and_scores_have_the_ends_of_the_familys_texts(checkpoint, monkeypatch) -> None:
    own = dataclasses.replace(checkpoint.family, bos=True, eos=True)
    monkeypatch.setattr(type(checkpoint), "family", property(lambda _: own))
    body = EditBody(text=TEXT, start=9, end=12, max_tokens=3, min_tokens=3)
    (request,) = edit_jobs(Service(checkpoint, ServeConfig()), body)
    holed = encode_holes(checkpoint, f"{TEXT[:9]}[[3]]{TEXT[12:]}")
    assert list(request.ids) == holed.ids
    assert holed.ids[0] == checkpoint.tokenizer.bos_token_id
    (pair,) = pairs_of(checkpoint, "One day", ["x"], partial(encode, checkpoint))
    assert pair[0] == [*first_ids(checkpoint), *encode(checkpoint, "One day")]


def test_characters_count_not_bytes_and_a_form_holds_where_it_fits(checkpoint) -> None:
    form = Constraint("choice", '["ä", "one"]')
    edited = softmask.edit(checkpoint, "Ö💡 day", 1, 2, constraint=form, max_new_tokens=6)
    assert edited.text in ("Öä day", "Öone day")
    # "ä" has two tokens here, and "one" two: other lengths do not fit.
    assert {draft.tokens for draft in edited.drafts} <= {2, 3}
    with pytest.raises(ValueError, match="shortest text of this form"):
        softmask.edit(checkpoint, TEXT, 9, 12, constraint=form, max_new_tokens=1)


@pytest.mark.parametrize(
    ("span", "more", "said"),
    [
        ((9, 40), {}, "lies outside of the text, which has 18 characters"),
        ((9, 8), {}, "give 0 <= start <= end"),
        ((0, 1), {"min_new_tokens": 4, "max_new_tokens": 2}, "the least comes first"),
        ((0, 1), {"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        ((0, 1), {"max_new_tokens": 2.5}, "max_new_tokens must be a whole number, not 2.5"),
        ((0, 1), {"min_new_tokens": "3"}, "min_new_tokens must be a whole number"),
        ((0, 1), {"seed": "a"}, "a seed must be a whole number, not 'a'"),
        ((0.5, 1), {}, "start must be a whole number, not 0.5"),
        ((0, 1), {"max_new_tokens": 300}, "the context is 128"),
        ((0, 1), {"block_size": 3}, "block_size"),
    ],
)
def test_what_cannot_be_edited_is_said_in_a_sentence(checkpoint, span, more, said) -> None:
    with pytest.raises(ValueError, match=said):
        softmask.edit(checkpoint, TEXT, *span, **more)


@pytest.mark.parametrize("more", [{}, {"guided_choice": ["one", "the"]}])
def test_a_server_edits_as_the_package_does(url, checkpoint, more) -> None:
    body = {"text": TEXT, "start": 9, "end": 12, "max_tokens": 4, "seed": 3, "temperature": 0.7}
    answer = post(url, "/v1/edits", {**body, **more}).json()
    form = Constraint("choice", json.dumps(more["guided_choice"])) if more else None
    own = softmask.edit(
        checkpoint, TEXT, 9, 12, max_new_tokens=4, seed=3, temperature=0.7, constraint=form
    )
    assert [one["text"] for one in answer["choices"]] == [draft.text for draft in own.drafts]
    assert [one["tokens"] for one in answer["choices"]] == [d.tokens for d in own.drafts]
    scores = [one["score"] for one in answer["choices"]]
    assert scores == pytest.approx([draft.score for draft in own.drafts], rel=1e-5)
    assert answer["softmask"] == {"forwards": own.forwards, "seed": 3}


@pytest.mark.parametrize(("queue", "lengths"), [(1, [3]), (2, [2, 4])])
def test_no_more_lengths_are_tried_than_may_wait(checkpoint, queue, lengths) -> None:
    body = {"text": TEXT, "start": 9, "end": 12, "min_tokens": 2, "max_tokens": 4, "seed": 3}
    with serving(checkpoint, queue=queue) as (url, _service):
        answer = post(url, "/v1/edits", body)
    assert answer.status_code == 200
    assert sorted(one["tokens"] for one in answer.json()["choices"]) == lengths


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"start": 30, "end": 31}, "lies outside of the text"),
        ({"stop": ["x"]}, "stop"),
        ({"max_tokens": 500}, "the context is 128"),
        ({"guided_regex": "[0-9]{9}", "max_tokens": 3}, "shortest text of this form"),
    ],
)
def test_a_server_refuses_what_cannot_be_edited(url, more, said) -> None:
    answer = post(url, "/v1/edits", {"text": TEXT, "start": 9, "end": 12, **more})
    assert answer.status_code == 400
    assert said in answer.json()["error"]["message"]


def test_the_command_prints_the_whole_text(folder, checkpoint, tmp_path, capsys) -> None:
    own = softmask.edit(checkpoint, TEXT, 9, 12, max_new_tokens=3)
    words = ["generate", "--model", str(folder), "--device", "cpu", "--max-new-tokens", "3"]
    assert main([*words, "--replace", "9:12", TEXT]) == 0
    assert capsys.readouterr().out == f"{own.text}\n"
    (tmp_path / "text").write_text(TEXT)
    given = [*words, "--file", str(tmp_path / "text"), "--replace", "9:12", "--json"]
    assert main(given) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["text"] == own.text
    assert [one["tokens"] for one in told["drafts"]] == [one.tokens for one in own.drafts]
    form = ["--choice", "one", "--choice", "the"]
    assert main([*words, "--replace", "9:12", *form, TEXT]) == 0
    written = capsys.readouterr().out.removeprefix(TEXT[:9]).removesuffix(f"{TEXT[12:]}\n")
    assert written in ("one", "the")
    assert main([*words, "--replace", "9-12", TEXT]) == 2
    assert "START:END" in capsys.readouterr().err
    assert main([*words, "--replace", "9:12", "--stream", TEXT]) == 2
    assert "--replace and --stream" in capsys.readouterr().err
