"""DreamOn as its own code has it: a hole whose length the model finds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from official import official, read, tensors

from softmask.config import SamplingConfig, SoftMaskConfig
from softmask.decoding.growing import Room
from softmask.decoding.prompts import encode_chat, rules_of
from softmask.decoding.sampler import denoise
from softmask.serving.engine import Engine, Request
from softmask.serving.trace import Tracer

GIVEN = read("dreamon", "generate.json")
CASES = {case["name"]: case for case in GIVEN["cases"]}
MASK, EXPAND, END = GIVEN["mask_id"], GIVEN["expand_id"], GIVEN["eos_id"]
# See goldens/README-qwen.md.
ABSENT = ("alg_temp 0.5", "temperature 0.2, top_p 0.9")


def settings(case: dict[str, Any]) -> SamplingConfig:
    """The options of its generator under our names."""
    given = case["options"]
    names = ("steps", "alg", "alg_temp", "temperature", "top_p", "top_k")
    return SamplingConfig(**{name: given[name] for name in names})


def room(case: dict[str, Any]) -> Room:
    """The most columns of a case, and how its hole may grow."""
    given = case["options"]
    return Room(
        len(case["prefix"]) + given["max_gen_len"] + len(case["suffix"]),
        pad_to_right=given["pad_eos_to_right"],
        delete_ends=given["delete_eos_token"],
        expand_budget=given["expand_budget"],
    )


def fill(
    cases: list[dict[str, Any]], config: SamplingConfig, **more: Any
) -> tuple[list[list[int]], list[list[list[int]]], tuple[int, ...]]:
    """Each row's hole in the end, as each of its forwards saw it, and its forwards."""
    rows = [[*c["prefix"], *[MASK] * c["options"]["masks"], *c["suffix"]] for c in cases]
    rooms = [room(case) for case in cases]
    columns = max(one.columns for one in rooms)
    canvas = torch.tensor([row + [END] * (columns - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (columns - len(row)) for row in rows])
    model = official("dreamon").model
    seen = [[[MASK] * case["options"]["masks"]] for case in cases]
    for step in denoise(model, canvas, config, attention_mask_BL=mask, room_B=rooms, **more):
        for row, case in enumerate(cases):
            if step.forwards_B[row] == len(seen[row]):  # it took part
                ids = step.canvas_BL[row].tolist()[: step.stop_B[row]]
                assert ids[: len(case["prefix"])] == case["prefix"]
                assert ids[len(ids) - len(case["suffix"]) :] == case["suffix"]
                seen[row].append(ids[len(case["prefix"]) : len(ids) - len(case["suffix"])])
    return [row[-1] for row in seen], [row[:-1] for row in seen], step.forwards_B


def test_the_logits_are_those_of_its_own_code() -> None:
    given, found = read("dreamon", "forward.json"), tensors("dreamon")["logits"]
    with torch.no_grad():
        logits_BLV = official("dreamon").model(torch.tensor(given["input_ids"])).logits
    # Ours are aligned: row i is of position i.
    torch.testing.assert_close(logits_BLV[:, 1:], found[:, :-1], rtol=0, atol=5e-5)


def test_texts_and_chats_have_the_ids_of_its_own_tokenizer() -> None:
    found, checkpoint = read("dreamon", "texts.json"), official("dreamon")
    for one in found["texts"]:
        ids = checkpoint.tokenizer(one["text"], add_special_tokens=False)["input_ids"]
        assert ids == one["ids"]
    for chat in found["chats"]:
        assert encode_chat(checkpoint, chat["messages"]) == chat["ids"]


@pytest.mark.parametrize("ruled", [False, True])
@pytest.mark.parametrize("name", [name for name in CASES if name not in ABSENT])
def test_every_round_of_a_growing_hole_is_that_of_its_own_code(name, ruled) -> None:
    """Also under the rules by which holes are filled, which elsewhere leave out every end."""
    case, rules = CASES[name], None
    if ruled:
        rules = rules_of(official("dreamon"), infill=True)
        never = {*rules.suppressed} - {MASK, EXPAND, END}
        wrote = never & {token for written in case["rounds"] for token in written}
        if wrote or case["seed"] is not None:
            pytest.skip("its own code wrote, or drew among, tokens that are no text's")
    if case["seed"] is not None:
        torch.manual_seed(case["seed"])
    answers, rounds, forwards = fill([case], settings(case), rules=rules)
    assert rounds == [case["rounds"]]
    assert answers == [case["answer"]]
    assert forwards == (case["forwards"],)


SHRUNK = ("expands and deletes, pad to the right", "all columns deleted: an empty answer")


@pytest.mark.parametrize("name", SHRUNK)
def test_a_server_has_holes_shrink_to_nothing_too(name) -> None:
    case, checkpoint = CASES[name], official("dreamon")
    ids = (*case["prefix"], *[MASK] * case["options"]["masks"], *case["suffix"])
    rules = rules_of(checkpoint, infill=True)
    request = Request(ids, settings(case), rules=rules, room=room(case), top_logprobs=1, trace=True)
    tracer = Tracer(checkpoint, request, infill=True, start=0, id="run", name="dreamon")
    with Engine(checkpoint.model, positions=len(ids) + 64) as engine:
        handle = engine.submit(request)
        steps = [tracer.step(event) for event in handle]
        result = handle.result()
    assert list(result.ids) == [*case["prefix"], *case["answer"], *case["suffix"]]
    assert len(steps) == case["forwards"]
    assert tracer.end(result)["finish_reason"] == "stop"


GROWS = [CASES[name] for name in ("expands", "expands and deletes, pad to the right", "8 masks")]
# Scale and steps such that feedback changes answers.
SOFT = SoftMaskConfig(scale=0.8, steepness=1.0, offset=-2.0)


@pytest.mark.parametrize("soft_mask", [None, SOFT])
def test_rows_that_grow_side_by_side_are_those_of_each_alone(soft_mask) -> None:
    config = settings(GROWS[0])
    answers, rounds, forwards = fill(GROWS, config, soft_mask=soft_mask)
    for row, case in enumerate(GROWS):
        alone = fill([case], config, soft_mask=soft_mask)
        assert alone == ([answers[row]], [rounds[row]], (forwards[row],))
    if soft_mask is not None:
        assert rounds != fill(GROWS, config)[1]


def test_a_mask_keeps_its_feedback_where_it_moves_and_new_ones_are_plain() -> None:
    model, case = official("dreamon").model, CASES["expands"]
    first, masks = len(case["prefix"]), case["options"]["masks"]
    row = [*case["prefix"], *[MASK] * masks, *case["suffix"]]
    canvas = torch.tensor([row + [END] * 8])
    mask = torch.tensor([[1] * len(row) + [0] * 8])
    steps = denoise(
        model,
        canvas,
        settings(case),
        attention_mask_BL=mask,
        room_B=[Room(len(row) + 8)],
        soft_mask=SOFT,
    )
    step = next(steps)
    assert step.lambda_BL is not None
    # The surest of four masks became two, which nothing is known of yet.
    lambdas = step.lambda_BL[0, first : first + masks + 1]
    assert step.stop_B == (len(row) + 1,)
    assert (lambdas == 0).sum() == 2
    assert (lambdas > 0).sum() == masks - 1
    assert not step.lambda_BL[0, first + masks + 1 :].any()


def test_without_expand_and_end_a_hole_is_filled_as_one_that_keeps_its_length() -> None:
    model, case = official("dreamon").model, CASES["expands and deletes, pad to the right"]
    row = [*case["prefix"], *[MASK] * 4, *case["suffix"]]
    canvas, mask = torch.tensor([row + [END] * 4]), torch.tensor([[1] * len(row) + [0] * 4])
    rules = rules_of(official("dreamon"), infill=True)
    assert {EXPAND, END} <= set(rules.suppressed)
    assert rules.eos_id == END
    more = {"attention_mask_BL": mask, "rules": rules}
    # A hole that grows has one token a step, as "even" has with as many steps as masks.
    endless = SamplingConfig(steps=4, suppress_eos=True)
    ways = [
        (SamplingConfig(steps=4, step_schedule="even"), {}),
        (endless, {"room_B": [Room(len(row) + 4, expand_budget=0)]}),
        (endless, {"room_B": [Room(len(row))]}),
    ]
    found = [
        [step.canvas_BL.tolist() for step in denoise(model, canvas, config, **more, **room)]
        for config, room in ways
    ]
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        ({"block_length": 2}, "leave out block_length"),
        ({"block_length": 2, "cache": "dual"}, "leave out cache"),
        ({"guidance": 1.0}, "leave out guidance"),
        ({"eps": 0.01}, "leave out eps"),
        ({"threshold": 0.9}, "one token a step: leave out thresholds"),
        ({"alg": "origin"}, "one token a step"),
    ],
)
def test_what_a_growing_hole_cannot_have_is_refused_in_one_sentence(sampling, message) -> None:
    canvas = torch.tensor([[5, MASK, MASK, 6]])
    with pytest.raises(ValueError, match=message):
        list(
            denoise(official("dreamon").model, canvas, SamplingConfig(**sampling), room_B=[Room(4)])
        )


def test_one_hole_alone_grows_and_within_its_room() -> None:
    model, config = official("dreamon").model, SamplingConfig(steps=4)
    for ids, columns, message in (
        ([5, MASK, 6, MASK], 4, "finds the length of one hole"),
        ([5, MASK, MASK, 6], 3, "more than it may grow to"),
    ):
        with pytest.raises(ValueError, match=message):
            list(denoise(model, torch.tensor([ids]), config, room_B=[Room(columns)]))
    hook = {"tokens_hook": lambda step, canvas, logits: canvas}
    with pytest.raises(ValueError, match="leave them out"):
        list(denoise(model, torch.tensor([[5, MASK, 6]]), config, room_B=[Room(3)], **hook))
