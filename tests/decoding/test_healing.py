"""A space before a hole: the hole begins with it, in Python and on a server."""

from __future__ import annotations

import re

import pytest
from tiny import write_dream_folder

import softmask
from softmask.constraints.constraint import Constraint
from softmask.decoding.prompts import encode_holes
from softmask.serving.config import ServeConfig
from softmask.serving.openai_responses import Answer
from softmask.serving.protocol import CompletionRequest, DenoiseRequest
from softmask.serving.service import Service
from softmask.serving.trace import record_ways

SOFT = {"k": 3, "scale": 0.8, "offset": -3.0, "steepness": 1.0}


@pytest.fixture(scope="module")
def checkpoint():
    """Its tokens bring spaces along; those of a tiny model do not."""
    return softmask.load(device="cpu")


def test_a_space_before_a_hole_is_the_holes_and_other_text_is_as_it_was(checkpoint) -> None:
    mask, encode = checkpoint.model.mask_id, checkpoint.tokenizer
    holed = encode_holes(checkpoint, "to [[2]], it[[1]]s  [[3]] [[1]] end")
    ids = encode("to")["input_ids"]
    ids = [*ids, mask, mask, *encode(", it")["input_ids"], mask, *encode("s ")["input_ids"]]
    assert holed.ids == [*ids, *[mask] * 4, *encode(" end")["input_ids"]]
    assert holed.spaced == (1, len(ids), len(ids) + 3)
    assert encode_holes(checkpoint, " [[2]]").spaced == ()  # nothing for it to end
    form = encode_holes(checkpoint, "a [[1]] b [[2]]", formed=True)
    assert form.spaced == (1,)
    assert form.ids[2:4] == encode(" b ")["input_ids"]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 1.0, "soft_mask": SOFT},
        {"threshold": 0.2, "steps": 9},
        {"block_length": 2, "cache": "dual", "steps": 9},
        {"steps": 1},
    ],
)
def test_each_hole_joins_by_exactly_one_space_however_it_is_filled(checkpoint, settings) -> None:
    texts = ["to [[3]]and [[1]], [[4]]x[[2]]", "(no space)[[5]]", "at [[2]]!"]
    for seed in (1, 2):
        runs = softmask.generate(checkpoint, texts, infill=True, seed=seed, **settings)
        first, second, third = (run.text for run in runs)
        assert re.fullmatch(r"to [^ ].*?and [^ ].*, [^ ].*", first, re.DOTALL)
        assert second.startswith("(no space)")
        assert re.fullmatch(r"at [^ ].*!", third, re.DOTALL)


@pytest.mark.parametrize("soft", [None, SOFT], ids=["plain", "soft"])
def test_a_hole_has_no_end_to_suppress(checkpoint, soft) -> None:
    texts = [
        softmask.generate(
            checkpoint,
            ["The dog [[3]] cat", "The dog[[3]] cat"],
            infill=True,
            soft_mask=soft,
            alg="entropy",
            temperature=0.0,
            top_p=None,
            block_length=None,
            suppress_eos=no_end,
        )
        for no_end in (False, True)
    ]
    assert [one.text for one in texts[1]] == [one.text for one in texts[0]]
    assert all(len(one.text.split()) >= 3 for one in texts[0])


def test_a_space_stays_where_no_token_has_one_and_more(tmp_path) -> None:
    plain = softmask.load(write_dream_folder(tmp_path / "dream"), device="cpu")
    ids = plain.tokenizer("to ")["input_ids"]
    assert encode_holes(plain, "to [[1]]") == ([*ids, plain.model.mask_id], ())


def test_a_form_is_behind_the_space(checkpoint) -> None:
    form = Constraint("choice", '["one", "the"]')
    run = softmask.generate(checkpoint, "to [[2]]!", infill=True, constraint=form)
    assert run.text in ("to one!", "to the!")


@pytest.mark.parametrize("form", [None, Constraint("choice", '["one", "the"]')])
def test_a_recorded_run_is_bound_as_the_run_itself(checkpoint, form) -> None:
    settings = {"infill": True, "constraint": form, "sampling": {"temperature": 0}}
    text = softmask.Generation(checkpoint, "to [[2]]!", **settings).completions()[0].text
    made = softmask.Generation(checkpoint, "to [[2]]!", **settings)
    (recorded,) = record_ways(made, [made.soft_mask])["runs"]
    assert recorded["end"]["text"] == text


def test_a_rule_may_end_a_hole_behind_a_space(checkpoint) -> None:
    @softmask.stopping_rule("two")
    def two(text):
        first = int(text.generated_L.nonzero()[0][0])
        return None if text.masked_L[first : first + 2].any() else first + 2

    settings = {"infill": True, "seed": 0, "alg": "sequential", "stop_rule": two}
    spaced = softmask.generate(checkpoint, "One day, [[6]] went home.", **settings)
    assert re.fullmatch(r"One day, [^ ].* went home\.", spaced.text)
    assert spaced.forwards < 6


def run(service: Service, job) -> Answer:
    """An answer, on the engine without a thread."""
    (handle,) = service.submit([job.request])
    while service.engine.run_once():
        pass
    answer = Answer(
        service.checkpoint, job.request, infill=True, stops=(), top=None, spaced=job.spaced
    )
    for event in handle:
        answer.take(event)
    answer.finish(handle.result(0))
    return answer


@pytest.mark.parametrize("more", [{}, {"guided_choice": ["one", "the"]}])
def test_a_server_fills_in_the_same_and_does_not_say_the_space_twice(checkpoint, more) -> None:
    service = Service(checkpoint, ServeConfig(memory_mb=256))
    asked = CompletionRequest(prompt="to ", suffix="!", max_tokens=3, temperature=0.0, **more)
    (job,) = service.jobs(asked)
    answer = run(service, job)
    assert answer.text[:1] not in ("", " ")
    assert not answer.is_malformed
    form = Constraint("choice", '["one", "the"]') if more else None
    own = softmask.generate(checkpoint, "to [[3]]!", infill=True, constraint=form, temperature=0)
    assert f"to {answer.text}!" == own.text
    (denoised,) = [service.trace_job(DenoiseRequest(infill="to [[3]]!", **more))]
    assert denoised.request.ids == job.request.ids
    assert denoised.request.holes == job.request.holes
