"""DreamOn as its own code has it: a hole whose length the model finds."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from official import official, read, tensors

from softmask.config import SamplingConfig, SoftMaskConfig
from softmask.decoding.prompts import rules_of
from softmask.decoding.sampler import Rules, denoise

GIVEN = read("dreamon", "generate.json")
CASES = {case["name"]: case for case in GIVEN["cases"]}
MASK, EXPAND, END = GIVEN["mask_id"], GIVEN["expand_id"], GIVEN["eos_id"]
# torch.multinomial draws other numbers there for positions, of the same distribution.
DRAWN = "alg_temp 0.5"


def settings(case: dict[str, Any]) -> SamplingConfig:
    """The options of its generator under our names."""
    given = case["options"]
    names = ("steps", "alg", "alg_temp", "temperature", "top_p", "top_k", "expand_budget")
    return SamplingConfig(
        **{name: given[name] for name in names},
        pad_to_right=given["pad_eos_to_right"],
        delete_ends=given["delete_eos_token"],
    )


def fill(
    cases: list[dict[str, Any]], config: SamplingConfig, **more: Any
) -> tuple[list[list[int]], list[list[list[int]]], tuple[int, ...]]:
    """Each row's hole in the end, as each of its forwards saw it, and its forwards."""
    rows = [[*c["prefix"], *[MASK] * c["options"]["masks"], *c["suffix"]] for c in cases]
    rooms = [
        len(row) - c["options"]["masks"] + c["options"]["max_gen_len"]
        for row, c in zip(rows, cases, strict=True)
    ]
    canvas = torch.tensor([row + [END] * (max(rooms) - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (max(rooms) - len(row)) for row in rows])
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


@pytest.mark.parametrize("name", [name for name in CASES if name != DRAWN])
def test_every_round_of_a_growing_hole_is_that_of_its_own_code(name) -> None:
    case = CASES[name]
    if case["seed"] is not None:
        torch.manual_seed(case["seed"])
    answers, rounds, forwards = fill([case], settings(case))
    assert rounds == [case["rounds"]]
    assert answers == [case["answer"]]
    assert forwards == (case["forwards"],)
