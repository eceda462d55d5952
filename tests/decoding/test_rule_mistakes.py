"""A rule of one's own that fails, or returns or keeps what it must not: one sentence names it."""

from __future__ import annotations

import dataclasses
import weakref

import pytest
import torch
from test_sampler import SOFT, canvas_of, drain, only_mask
from tiny import tiny_model

import softmask
from softmask.config import SamplingConfig
from softmask.serving.engine import Engine, Request


@pytest.fixture(scope="module")
def bundled():
    return softmask.load(device="cpu")


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (lambda rows: rows.probability_N[:1], "must return a tensor of 12 numbers"),
        (lambda rows: rows.probability_N > 0, "must return a tensor of 12 numbers"),
        (lambda rows: rows.probability_N * torch.nan, "and no NaN"),
        (lambda rows: rows.colour_N, "a rule cannot read colour_N here: there is tokens_N"),
        (lambda rows: writes(rows, a=1), "the commit rule odd keeps no a: declare it"),
        (
            lambda rows: writes(rows, count=rows.probability_N),
            "state count begins with 0, so it cannot keep floats: declare 0.0",
        ),
        (
            lambda rows: writes(rows, seen=rows.tokens_N),
            "state seen begins with False, so it cannot keep ints: declare 0$",
        ),
        (lambda rows: writes(rows, count=[1, 2]), r"12 numbers here, .* not of the shape \(2,\)"),
        (lambda rows: writes(rows, count="many"), "odd: state count must be numbers, .* 'many'"),
        (lambda rows: setattr(rows, "state", 3) or rows.entropy_N, "odd must write into its state"),
    ],
)
def test_what_a_rule_gets_wrong_is_one_sentence(returned, message) -> None:
    start = {"count": 0, "seen": False}
    softmask.commit_rule("odd", state=start)(lambda rows: returned(rows))
    with pytest.raises(ValueError, match=message):
        decode(alg="odd")


def writes(rows, **state):
    """Scores of a rule that keeps these values."""
    rows.state.update(state)
    return rows.entropy_N


def decode(soft_mask=None, **sampling):
    """Three steps of a text of 5 known tokens and 12 masks."""
    model = tiny_model()
    canvas, _ = canvas_of(model, [5])
    config = SamplingConfig(steps=3, **sampling)
    return drain(model, canvas, config, rules=only_mask(model), soft_mask=soft_mask)


@pytest.mark.parametrize("kind", ["commit", "feedback", "stopping"])
def test_a_rule_that_fails_is_named_with_the_line_that_failed(kind) -> None:
    def boom(seen):
        raise KeyError("boom")

    getattr(softmask, f"{kind}_rule")("boom")(boom)
    settings = {"commit": {"alg": "boom"}, "stopping": {"stop_rule": "boom"}}
    if kind == "feedback":
        settings["feedback"] = {"soft_mask": dataclasses.replace(SOFT, mode="boom")}
    line = boom.__code__.co_firstlineno + 1
    message = (
        rf"^the {kind} rule boom failed \(KeyError: 'boom', test_rule_mistakes.py line {line}\)$"
    )
    with pytest.raises(ValueError, match=message) as caught:
        decode(**settings[kind])
    assert isinstance(caught.value.__cause__, KeyError)


def test_the_line_is_the_rules_own_where_torch_refuses() -> None:
    softmask.commit_rule("boom")(lambda rows: rows.entropy_N + rows.entropy_N[:5])
    with pytest.raises(
        ValueError, match=r"boom failed \(RuntimeError: .*, test_rule_mistakes.py line \d+"
    ):
        decode(alg="boom")


def test_too_little_memory_is_no_mistake_of_a_rule() -> None:
    @softmask.commit_rule("large")
    def large(rows):
        raise MemoryError

    with pytest.raises(MemoryError):
        decode(alg=large)


def test_a_servers_request_fails_with_the_sentence() -> None:
    @softmask.commit_rule("boom")
    def boom(rows):
        raise ValueError("boom")

    model = tiny_model()
    ids = (1, 2, *[model.config.mask_token_id] * 4)
    engine = Engine(model, positions=24, k=2)
    handle = engine.submit(Request(ids, SamplingConfig(steps=2, alg=boom), rules=only_mask(model)))
    while engine.run_once():
        pass
    assert (
        "the commit rule boom failed (ValueError: boom, test_rule_mistakes.py"
        in handle.result().error
    )


def test_a_recording_and_an_edit_fail_as_generating_does(bundled) -> None:
    @softmask.commit_rule("boom")
    def boom(rows):
        raise KeyError("boom")

    calls = (
        lambda: softmask.generate(bundled, "Tom", max_new_tokens=2, alg=boom),
        lambda: softmask.trace(bundled, "Tom", max_new_tokens=2, alg=boom),
        lambda: softmask.edit(bundled, "One day, Tom went", 9, 12, alg=boom),
    )
    sentences = []
    for call in calls:
        with pytest.raises(ValueError, match="the commit rule boom failed") as caught:
            call()
        assert isinstance(caught.value.__cause__, KeyError)
        sentences.append(str(caught.value).removeprefix("the run failed: "))
    assert len(set(sentences)) == 1


def test_the_error_that_a_result_keeps_holds_no_tensors() -> None:
    alive = []

    @softmask.commit_rule("boom")
    def boom(rows):
        large_N = torch.zeros(100)
        alive.append(weakref.ref(large_N))
        raise KeyError("boom")

    model = tiny_model()
    engine = Engine(model, positions=24, k=2)
    ids = (1, 2, *[model.config.mask_token_id] * 4)
    handle = engine.submit(Request(ids, SamplingConfig(steps=2, alg=boom), rules=only_mask(model)))
    while engine.run_once():
        pass
    cause = handle.result().cause.__cause__
    assert isinstance(cause, KeyError)
    assert alive
    assert not any(one() is not None for one in alive)


@pytest.mark.parametrize("column", [True, 0, 4, 18, 7.0, "7"])
def test_a_column_that_is_none_of_the_answer_is_refused(column) -> None:
    softmask.stopping_rule("odd_end")(lambda text: column)
    message = r"odd_end must return None or an int, .* from 5 \(behind the prompt\) to 17"
    with pytest.raises(ValueError, match=message):
        decode(stop_rule="odd_end")


@pytest.mark.parametrize("value", [7.0, -0.5, torch.nan])
def test_chances_and_feedback_beyond_zero_and_one_are_refused(value) -> None:
    def odd(rows):
        return torch.full_like(rows.entropy_N, value)

    softmask.commit_rule("odd_chance", returns="chances")(odd)
    with pytest.raises(
        ValueError, match=r"odd_chance must return a tensor of 12 numbers in \[0, 1"
    ):
        decode(alg="odd_chance")
    softmask.feedback_rule("odd_trust")(odd)
    with pytest.raises(
        ValueError, match=r"rule odd_trust must return \(\d+,\) numbers in \[0, 1\]"
    ):
        decode(dataclasses.replace(SOFT, mode="odd_trust"))
