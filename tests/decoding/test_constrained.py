"""Decoding into a form: whatever the model, the sampling and the neighbours, answers keep to it."""

from __future__ import annotations

import dataclasses
import json
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import softmask
from softmask.config import SamplingConfig, SoftMaskConfig
from softmask.constraints import token_automaton
from softmask.constraints.constraint import Constraint
from softmask.decoding import forms
from softmask.decoding.control_names import ControlNames
from softmask.decoding.forms import automaton_for
from softmask.decoding.generation import generate
from softmask.decoding.prompts import encode, rules_of
from softmask.models import DreamModel
from softmask.rules import stopping_rule
from softmask.sampling import HOTTEST
from softmask.serving.engine import Engine, Request

PERSON = r'\{"name": "[a-z ]{0,9}", "age": \d{1,3}\}'
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "kinds": {"type": "array", "items": {"enum": ["cat", "dog"]}, "maxItems": 2},
    },
    "required": ["name", "age", "kinds"],
}
FORMS = {
    "regex": Constraint("regex", PERSON),
    "schema": Constraint("json_schema", json.dumps(SCHEMA)),
    "choice": Constraint("choice", json.dumps(["yes", "no", "not at all"])),
    "object": Constraint("json_object"),
}
SOFT = SoftMaskConfig(scale=0.7, k=3)


@pytest.fixture(scope="module")
def checkpoint(model):
    return softmask.load(model, device="cpu")


def is_of_form(name: str, text: str) -> bool:
    if name == "regex":
        return re.fullmatch(PERSON, text) is not None
    if name == "choice":
        return text in ("yes", "no", "not at all")
    value = json.loads(text)
    if name == "object":
        return isinstance(value, dict)
    kinds = value.get("kinds")
    return (
        list(value) == ["name", "age", "kinds"]
        and len(value["name"]) <= 6
        and 0 <= value["age"] <= 120
        and set(kinds) <= {"cat", "dog"}
        and len(kinds) <= 2
    )


SAMPLINGS = {
    "greedy": {"steps": 12},
    "one step": {"steps": 1},
    "by chance": {"steps": 9, "alg": "origin", "temperature": 1.0},
    "hot": {"steps": 20, "alg": "entropy", "temperature": 1.0, "top_p": 0.9},
    "noisy order": {"steps": 20, "alg": "maskgit_plus", "alg_temp": 0.5, "temperature": 0.3},
    "threshold": {"steps": 48, "alg": "topk_margin", "threshold": 0.6, "block_length": 16},
    "blocks": {"steps": 48, "alg": "entropy", "block_length": 12, "cache": "prefix"},
    "lookahead": {"steps": 48, "alg": "entropy", "block_length": 12, "lookahead": 12},
    "block-causal": {"steps": 48, "alg": "entropy", "cache": "exact"},
}


EARLY = {
    "early": {
        **{"steps": 48, "block_length": 12, "cache": "dual", "next_block_at": 0.5},
        **{"entropy_threshold": 1.0, "agreement": 2, "commit_from": "plain"},
    },
    "early and scheduled": {"steps": 20, "block_length": 12, "next_block_at": 0.25},
}
WAYS = [
    *(pytest.param(sampling, id=name) for name, sampling in SAMPLINGS.items()),
    *(pytest.param(one, id=name, marks=pytest.mark.slow) for name, one in EARLY.items()),
]


@pytest.mark.parametrize("sampling", WAYS)
@pytest.mark.parametrize("soft", [None, SOFT], ids=["plain", "soft"])
def test_mixed_requests_in_one_batch_each_keep_to_their_own_form(
    checkpoint, sampling, soft, monkeypatch
):
    if sampling.get("cache") == "exact":
        monkeypatch.setattr(checkpoint.model.config, "block_size", 12)
    prompt, mask_id = encode(checkpoint, "abc"), checkpoint.model.mask_id
    config = SamplingConfig(**sampling)
    requests: dict[str, Request] = {}
    for name in (*FORMS, "free"):
        form = automaton_for(checkpoint, FORMS[name], infill=False) if name in FORMS else None
        requests[name] = Request(
            (*prompt, *[mask_id] * 48),
            config,
            soft_mask=soft,
            rules=rules_of(checkpoint, infill=False),
            seed=3,
            constraint=form,
        )
    with Engine(checkpoint.model, positions=400, k=3) as engine:
        handles = {name: engine.submit(request) for name, request in requests.items()}
        results = {name: handle.result(60) for name, handle in handles.items()}
        alone = engine.submit(requests["free"]).result(60)
    for name in FORMS:
        result = results[name]
        assert (result.finish_reason, result.left) == ("done", 0), result.error
        ids = result.ids[len(prompt) :]
        ends = [place for place, token in enumerate(ids) if token in checkpoint.end_ids]
        text = checkpoint.decode(ids[: ends[0]] if ends else ids)
        assert is_of_form(name, text), text
    assert results["free"].ids == alone.ids


@settings(max_examples=12, deadline=None)
@given(
    st.recursive(
        st.sampled_from(["a", "bc", "[x-z]", r"\d", "."]),
        lambda inner: st.one_of(
            st.tuples(inner, inner).map("".join),
            st.tuples(inner, inner).map(lambda pair: f"({pair[0]}|{pair[1]})"),
            inner.map(lambda one: f"({one})*"),
            inner.map(lambda one: f"({one}){{1,3}}"),
        ),
        max_leaves=6,
    ),
    st.integers(0, 2**20),
)
def test_any_pattern_is_matched_by_what_is_drawn_at_random(checkpoint, pattern, seed):
    answers = generate(
        checkpoint,
        ["a", "b"],
        max_new_tokens=24,
        chat=False,
        constraint=Constraint("regex", pattern),
        seed=seed,
        steps=5,
        alg="origin",
        temperature=1.0,
    )
    for answer in answers:
        assert re.fullmatch(pattern, answer.text), (pattern, answer.text)


def test_a_hole_is_filled_with_just_its_tokens(checkpoint):
    number = Constraint("regex", "[0-9]+")
    answer = generate(checkpoint, "x = [[5]];", infill=True, constraint=number, seed=1)
    assert re.fullmatch(r"x = \d{5};", answer.text)
    with pytest.raises(ValueError, match="no text of this form has just the 5 tokens"):
        generate(
            checkpoint, "x = [[5]];", infill=True, constraint=Constraint("choice", '["a", "bc"]')
        )


def test_the_text_from_the_first_hole_to_the_last_has_the_form(checkpoint):
    pair = Constraint("regex", r"[0-9]+, [a-f]+")
    answer = generate(checkpoint, "([[2]], [[3]])", infill=True, constraint=pair, temperature=1.0)
    assert re.fullmatch(r"\([0-9]{2}, [a-f]{3}\)", answer.text)


def test_a_form_that_does_not_fit_is_refused_with_the_length_that_it_needs(checkpoint):
    with pytest.raises(ValueError, match=r"shortest text of this form has 30 .* room for 8: ask"):
        generate(checkpoint, "a", max_new_tokens=8, constraint=Constraint("regex", "a{30}"))


def test_what_the_form_fixes_takes_no_forwards(checkpoint):
    one = generate(checkpoint, "a", max_new_tokens=60, constraint=Constraint("choice", '["on"]'))
    assert (one.text, one.forwards) == ("on", 0)
    fixed = generate(
        checkpoint,
        "a",
        max_new_tokens=60,
        constraint=Constraint("regex", r'\{"the long name of a key": [0-9], "another": [0-9]\}'),
    )
    assert fixed.forwards <= 4
    assert json.loads(fixed.text).keys() == {"the long name of a key", "another"}


def test_feedback_points_at_nothing_that_the_form_forbids(checkpoint):
    form = automaton_for(checkpoint, Constraint("regex", "[ab]*c[ab]*"), infill=False)
    mask_id = checkpoint.model.mask_id
    request = Request(
        (*encode(checkpoint, "abc"), *[mask_id] * 24),
        SamplingConfig(steps=24, alg="origin", temperature=1.0),
        soft_mask=SoftMaskConfig(scale=1.0, k=8),
        rules=rules_of(checkpoint, infill=False),
        top_logprobs=5,
        trace=True,
        constraint=form,
    )
    possible = {*"abc", *(checkpoint.decode([token]) for token in checkpoint.end_ids)}
    seen = 0
    with Engine(checkpoint.model, positions=64, k=8) as engine:
        committed: set[str] = set()
        for event in engine.submit(request):
            committed |= {checkpoint.decode([token]) for token in event.ids}
            fed = event.trace.ids_MK[event.trace.weights_MK > 0]
            names = {checkpoint.decode([token]) for token in fed.tolist()}
            assert names <= possible
            # There is one c: once it is there, no hole may be fed it.
            assert not ("c" in committed and "c" in names)
            named = event.logprobs.ids_NK
            assert {checkpoint.decode([t]) for t in named[named >= 0].tolist()} <= possible
            seen += len(fed)
    assert seen


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_token_that_took_the_place_of_another_is_told_with_its_own_probability(
    checkpoint, temperature
):
    form = automaton_for(checkpoint, Constraint("regex", r"[a-z]{3,8} [a-z]{2,6}\."), infill=False)
    request = Request(
        (*encode(checkpoint, "abc"), *[checkpoint.model.mask_id] * 12),
        SamplingConfig(steps=1, temperature=temperature),
        rules=rules_of(checkpoint, infill=False),
        top_logprobs=48,  # all that the form allows
        constraint=form,
    )
    told = 0
    with Engine(checkpoint.model, positions=64, k=48) as engine:
        for event in engine.submit(request):
            seen = event.logprobs
            is_own_NK = seen.ids_NK == torch.tensor(event.ids)[:, None].numpy()
            assert is_own_NK.sum(1).tolist() == [1] * len(event.ids)
            assert seen.logprob_N == pytest.approx(seen.logprobs_NK[is_own_NK], abs=1e-5)
            told += len(event.ids)
    assert told == 12


@pytest.mark.parametrize("only", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}], ids=str)
def test_filters_hold_for_a_token_that_takes_the_place_of_another(checkpoint, only):
    settings = {"max_new_tokens": 12, "constraint": Constraint("regex", "([a-m][n-z])+")}
    texts = {
        generate(checkpoint, "abc", seed=seed, steps=1, alg="entropy", **settings, **more).text
        for seed, more in enumerate([{"temperature": 1.0} | only] * 3 + [{"temperature": 0.0}])
    }
    assert len(texts) == 1


def test_at_the_highest_temperature_a_form_holds_in_the_narrowest_dtype(model):
    narrow = softmask.load(model, device="cpu", dtype="float16")
    answers = generate(
        narrow,
        ["a", "b"],
        max_new_tokens=24,
        constraint=Constraint("regex", "([ab][cd])+"),
        soft_mask=SoftMaskConfig(mode="temperature", scale=0.5, temperature=HOTTEST),
        seed=1,
        steps=6,
        temperature=HOTTEST,
    )
    assert all(re.fullmatch("([ab][cd])+", answer.text) for answer in answers)


@pytest.mark.parametrize("soft", [None, SOFT], ids=["plain", "soft"])
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_an_end_that_is_not_wanted_comes_where_the_form_leaves_nothing_else(
    checkpoint, soft, temperature
):
    answer = generate(
        checkpoint,
        "abc",
        max_new_tokens=12,
        constraint=Constraint("regex", "[a-z]{3,8}"),
        soft_mask=soft,
        seed=1,
        alg="entropy",
        temperature=temperature,
        suppress_eos=True,
    )
    assert re.fullmatch("[a-z]{8}", answer.text)


def test_a_step_that_is_repeated_in_parts_repeats_its_constraints_too(checkpoint, monkeypatch):
    mask_id = checkpoint.model.mask_id
    request = Request(
        (*encode(checkpoint, "abc"), *[mask_id] * 40),
        SamplingConfig(steps=10, alg="origin", temperature=1.0),
        soft_mask=SOFT,
        rules=rules_of(checkpoint, infill=False),
        seed=5,
        constraint=automaton_for(checkpoint, FORMS["schema"], infill=False),
    )
    requests = [request, dataclasses.replace(request, seed=6)]

    def run() -> list[tuple[int, ...]]:
        with Engine(checkpoint.model, positions=120, k=3) as engine:
            handles = [engine.submit(one) for one in requests]
            return [handle.result(60).ids for handle in handles]

    expected, hidden, sizes = run(), DreamModel.hidden, []

    def fail(model, tokens, layout):
        sizes.append(len(layout.flat_T))
        found = hidden(model, tokens, layout)
        if len(layout.flat_T) > 60:
            raise torch.OutOfMemoryError("too large")
        return found

    monkeypatch.setattr(DreamModel, "hidden", fail)
    assert run() == expected
    assert max(sizes) > 60


def test_sets_that_were_forgotten_are_read_off_the_canvas_again(checkpoint, monkeypatch):
    def answer() -> str:
        form = Constraint("regex", PERSON)
        checkpoint.automata.clear()
        run = generate(
            checkpoint, "a", max_new_tokens=48, constraint=form, seed=2, steps=12, temperature=1.0
        )
        return run.text

    expected = answer()
    monkeypatch.setattr(token_automaton, "MOST_BYTES", 9000)
    assert answer() == expected


def test_what_is_kept_of_forms_is_bounded_and_those_used_last_stay(checkpoint, monkeypatch):
    def ask(letter: str) -> int:
        return automaton_for(checkpoint, Constraint("regex", f"{letter}{{50}}"), infill=True).nbytes

    checkpoint.automata.clear()
    monkeypatch.setattr(forms, "MOST_BYTES", ask("a") * 5 // 2)
    for letter in "bacad":
        ask(letter)
    assert [constraint.source for constraint, _, _ in checkpoint.automata] == ["a{50}", "d{50}"]


def test_fixed_text_is_tokenized_in_one_call_however_long(checkpoint, monkeypatch):
    sizes = []
    batch = ControlNames.encode_batch

    def counted(names, texts):
        sizes.append(len(texts))
        return batch(names, texts)

    monkeypatch.setattr(ControlNames, "encode_batch", counted)
    form = Constraint("choice", json.dumps(["".join(chr(97 + i % 23) for i in range(3000))]))
    assert automaton_for(checkpoint, form, infill=True).shortest(4000) == 3000
    assert len(sizes) == 1


def test_a_stopping_rule_that_ends_a_text_before_it_has_its_form_is_an_error(checkpoint):
    @stopping_rule("test-at-once")
    def at_once(text):
        return int(text.masked_L.argmax())

    with pytest.raises(ValueError, match="no longer of the form that was asked for"):
        generate(
            checkpoint,
            "a",
            max_new_tokens=48,
            constraint=FORMS["schema"],
            steps=24,
            stop_rule="test-at-once",
        )
