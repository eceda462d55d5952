"""Tiny-A2D (Qwen3, Qwen2, Llama) and Open-dCoder as their own code has them."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from official import decode, official, read, tensors

from softmask.config import SamplingConfig
from softmask.decoding.prompts import encode_chat, first_ids

A2D = ("a2d_qwen3_mdlm", "a2d_qwen2_mdlm", "a2d_llama_mdlm")
OPEN = "opendcoder"
# Options of dllm's sampler and of Open-dCoder's that softmask has not.
ABSENT = {"cfg_keep_tokens", "suppress_tokens", "begin_suppress_tokens", "stochastic_transfer"}


def cases(name: str) -> dict[str, dict]:
    found = read(name, "generate.json")["cases"]
    there = [c for c in found if not ABSENT & set(c["options"]) and c["options"].get("alg") != "p2"]
    # Open-dCoder draws positions by other random numbers of the same distribution.
    return {case["name"]: case for case in there if not case["options"].get("alg_temp")}


def settings(case: dict) -> dict:
    """The options of dllm's MDLMSampler under our names."""
    given = case["options"]
    masks = given.get("max_new_tokens", 0)
    sampling = {
        "step_schedule": "rounded",
        "raw_scores": True,
        "noise": "float64",
        "alg": {"low_confidence": "maskgit_plus"}.get(given["remasking"], given["remasking"]),
        "temperature": given["temperature"],
        "guidance": given["cfg_scale"],
        "steps": given["steps"],
    }
    if given["block_size"] is not None and given["block_size"] < masks:
        blocks = -(-masks // given["block_size"])
        # As many steps in each block, so one more than given where they do not divide.
        steps = blocks * -(-given["steps"] // blocks)
        sampling |= {"block_length": given["block_size"], "steps": steps}
    return {"masks": masks, "sampling": sampling}


@pytest.mark.parametrize("name", A2D)
def test_the_logits_are_those_of_its_own_code(name) -> None:
    given, found = read(name, "forward.json"), tensors(name)
    with torch.no_grad():
        logits_BLV = official(name).model(torch.tensor(given["input_ids"])).logits
    torch.testing.assert_close(logits_BLV, found["logits"], rtol=0, atol=5e-5)


ALONE = [
    pytest.param(name, case, id=f"{name}-{case['name']}")
    for name in A2D
    for case in cases(name).values()
    # Blocks of an infilling lie on a grid of columns there, and are of masks here; and rows of
    # unequal length are decoded one by one, as noise is drawn for a padded canvas there.
    if not (case.get("infill") and case["options"]["block_size"])
    and (len({len(prompt) for prompt in case["prompts"]}) == 1 or not case["seed"])
]


@pytest.mark.parametrize(("name", "case"), ALONE)
def test_the_sampler_writes_the_same_tokens(name, case) -> None:
    prompts, wanted = case["prompts"], case["sequences"]
    alike = len({len(prompt) for prompt in prompts}) == 1
    groups = [prompts] if alike else [[prompt] for prompt in prompts]
    made = settings(case)
    found = []
    for group in groups:
        decoded = decode(name, group, seed=case["seed"], **made)
        found += decoded.tokens
    first = [len(prompt) if made["masks"] else 0 for prompt in prompts]
    expected = [
        row[start : start + made["masks"]] if made["masks"] else row
        for row, start in zip(wanted, first, strict=True)
    ]
    assert found == expected


def test_open_dcoder_gives_the_logits_of_its_own_code_which_are_one_row_behind() -> None:
    given, found = read(OPEN, "forward.json"), tensors(OPEN)
    with torch.no_grad():
        logits_BLV = official(OPEN).model(torch.tensor(given["input_ids"])).logits
    torch.testing.assert_close(logits_BLV[:, 1:], found["logits"][:, :-1], rtol=0, atol=5e-5)


@pytest.mark.parametrize("name", cases(OPEN))
def test_open_dcoder_writes_the_tokens_of_its_own_sampler(name) -> None:
    case = cases(OPEN)[name]
    given = dict(case["options"])
    masks = given.pop("max_new_tokens")
    decoded = decode(OPEN, case["prompts"], masks, given, seed=case["seed"])
    first = len(case["prompts"][0]) if masks else 0
    assert decoded.tokens == [row[first:] for row in case["sequences"]]


@pytest.mark.parametrize("name", [*A2D, OPEN])
def test_texts_and_chats_have_the_ids_of_the_official_tokenizer(name) -> None:
    found, checkpoint = read(name, "texts.json"), official(name)
    for one in found["texts"]:
        ids = checkpoint.tokenizer(one["text"], add_special_tokens=False)["input_ids"]
        assert [*(first_ids(checkpoint) if name in A2D else ()), *ids] == one["ids"]
    for chat in found.get("chats", []):
        assert encode_chat(checkpoint, chat["messages"]) == chat["ids"]


def test_what_a_family_sets_in_its_template_a_conversation_may_set_otherwise() -> None:
    checkpoint = official("a2d_qwen3_mdlm")
    messages = [{"role": "user", "content": "What is 2 + 2?"}]
    quiet = encode_chat(checkpoint, messages)
    assert quiet == encode_chat(checkpoint, messages, variables={"enable_thinking": False})
    thinking = encode_chat(checkpoint, messages, variables={"enable_thinking": True})
    assert quiet[: len(thinking)] == thinking
    assert checkpoint.tokenizer.decode(quiet[len(thinking) :]).strip().startswith("<think>")


def test_rounded_counts_fill_every_block_in_its_steps_whatever_their_number() -> None:
    from softmask.decoding.schedule import StepSchedule

    masked = torch.ones(13, dtype=torch.bool).numpy()
    for steps in range(1, 20):
        config = SamplingConfig(steps=steps, step_schedule="rounded")
        schedule = StepSchedule(masked, config)
        counts = []
        for step in range(steps):
            counts.append(schedule.at(step).commits)
            schedule.take(0, counts[-1])
        assert sum(counts) == 13
        assert max(b - a for a, b in pairwise([*counts, counts[-1]])) <= 1
