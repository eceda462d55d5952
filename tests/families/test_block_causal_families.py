"""SDAR, Fast-dLLM v2, Tiny-A2D's bd3lm, LLaDA2.0: logits and tokens of their own code."""

from __future__ import annotations

import math
import shutil

import pytest
import torch
from official import decode, folder_of, official, read, tensors
from tiny import change_json, write_dream_folder, write_json, write_lora_adapter

import softmask
from softmask.decoding.prompts import encode_chat
from softmask.hub.export import export
from softmask.hub.load import load

BD3LM, SDAR, FAST, LLADA2 = "a2d_qwen3_bd3lm", "sdar", "fastdllm2", "llada2"
NAMES = (BD3LM, SDAR, FAST, LLADA2)


@pytest.fixture
def blocks_of(monkeypatch):
    """Sets how large the blocks of a folder's model are."""

    def set_size(name: str, size: int) -> None:
        monkeypatch.setattr(official(name).model.config, "block_size", size)

    return set_size


@pytest.mark.parametrize("name", NAMES)
def test_the_logits_are_those_of_its_own_code(name, blocks_of) -> None:
    given, found = read(name, "forward.json"), tensors(name)
    blocks_of(name, given["block_size"])
    with torch.no_grad():
        logits_BLV = official(name).model(torch.tensor(given["input_ids"])).logits
    wanted_BLV = found["logits"]
    if official(name).model.config.logit_shift:
        logits_BLV, wanted_BLV = logits_BLV[:, 1:], wanted_BLV[:, :-1]
    torch.testing.assert_close(logits_BLV, wanted_BLV, rtol=0, atol=5e-5)


def greedy(name: str, wanted) -> list:
    """The cases of a golden file that draw nothing and have only what softmask has."""
    found = [case for case in read(name, "generate.json")["cases"] if wanted(case)]
    # Every third of them by default.
    return [
        pytest.param(case, id=case["name"], marks=[pytest.mark.slow] if i % 3 else [])
        for i, case in enumerate(found)
    ]


# Kept tokens and chance in the number of commits are not of this package. What it draws, dllm draws
# for a block and this package for the canvas. And dllm hides a pad token that the model wrote.
BD3LM_CASES = greedy(
    BD3LM,
    lambda case: (
        case["seed"] is None
        and "cfg_keep_tokens" not in case["options"]
        and "pad" not in case["holds"]
    ),
)


@pytest.mark.parametrize("case", BD3LM_CASES)
def test_bd3lm_writes_the_tokens_of_its_own_sampler(case, blocks_of) -> None:
    given = case["options"]
    size, masks = given["block_size"], given["max_new_tokens"]
    blocks_of(BD3LM, size)
    blocks = math.ceil(masks / size)
    each = given.get("steps_per_block") or math.ceil(given["steps"] / blocks)
    sampling = {
        **official(BD3LM).sampling,
        "guidance": given["cfg_scale"],
        "steps": each * blocks,
    }
    for prompt, wanted in zip(case["prompts"], case["generated"], strict=True):
        found = decode(BD3LM, [prompt], masks, sampling).tokens[0]
        assert found[: len(wanted)] == wanted


def sdar_settings(given: dict) -> dict | None:
    """The options of a greedy case of SDAR's two samplers under our names."""
    if given["top_k"] != 1:
        return None
    if given.get("evaluation"):
        return {"threshold": given["threshold"]}
    if given["remasking_strategy"] == "sequential":
        return {"alg": "sequential", "threshold": None}
    # Confidences of one token out of one: always 1, so a block is filled at once.
    dynamic = given["remasking_strategy"] == "low_confidence_dynamic"
    return {"threshold": 0.0} if dynamic else None


@pytest.mark.parametrize("case", greedy(SDAR, lambda case: sdar_settings(case["options"])))
def test_sdar_writes_the_tokens_of_its_own_samplers(case, blocks_of) -> None:
    given, prompt = case["options"], case["prompt"]
    blocks_of(SDAR, given["block_length"])
    mask_id, wanted = official(SDAR).model.mask_id, case["sequence"]
    masks = len(wanted) - len(prompt)
    steps = math.ceil(masks * given["denoising_steps"] / given["block_length"])
    sampling = {**official(SDAR).sampling, **sdar_settings(given), "steps": steps}
    found = decode(SDAR, [prompt], masks, sampling).tokens[0]
    # It stops behind the block that holds an end token.
    written = [token for token in wanted if token != mask_id][len(prompt) :]
    assert found[: len(written)] == written


@pytest.mark.parametrize("case", greedy(FAST, lambda case: not case["options"]["temperature"]))
def test_fast_dllm_writes_the_tokens_of_its_own_samplers(case, blocks_of) -> None:
    given = case["options"]
    size = given["block_size"]
    blocks_of(FAST, size)
    prompts = case["prompts"] if case.get("batch") else [case["prompt"]]
    for prompt, wanted in zip(prompts, case.get("sequences") or [case["sequence"]], strict=True):
        length = (len(prompt) // size + given["max_new_tokens"] // size) * size
        masks = length - len(prompt)
        sampling = {
            **official(FAST).sampling,
            "threshold": given["threshold"],
            "block_length": given["small_block_size"],
            "steps": masks,
        }
        found = decode(FAST, [prompt], masks, sampling)
        written = wanted[len(prompt) : length]
        assert found.tokens[0][: len(written)] == written


# Its counts are those of a whole block, also where a prompt has filled a part of it; here those of
# the masks. One token a step, its default, and counts that are even are the same.
LLADA2_CASES = greedy(
    LLADA2, lambda case: case["options"]["block_length"] % case["options"]["steps"] == 0
)


@pytest.mark.parametrize("case", LLADA2_CASES)
def test_llada2_writes_the_tokens_of_its_own_sampler(case, blocks_of) -> None:
    given, prompt = case["options"], case["prompt"]
    size = given["block_length"]
    blocks_of(LLADA2, size)
    length = math.ceil((len(prompt) + given["gen_length"]) / size) * size
    masks = length - len(prompt)
    steps = math.ceil(masks * given["steps"] / size)
    sampling = {**official(LLADA2).sampling, "threshold": given["threshold"], "steps": steps}
    wanted = case["generated"]
    for cache in ("exact", "none"):
        found = decode(LLADA2, [prompt], masks, sampling | {"cache": cache})
        assert found.tokens[0][: len(wanted)] == wanted


@pytest.mark.parametrize("name", NAMES)
def test_texts_and_chats_have_the_ids_of_the_official_tokenizer(name) -> None:
    found, checkpoint = read(name, "texts.json"), official(name)
    for one in found["texts"]:
        assert (
            checkpoint.tokenizer(one["text"], add_special_tokens=False)["input_ids"] == one["ids"]
        )
    for chat in found.get("chats", []):
        if name == SDAR:  # its samplers leave the template's options alone, the file has them set
            given = {**found["template_options"], "add_generation_prompt": True}
            text = checkpoint.tokenizer.apply_chat_template(
                chat["messages"], tokenize=False, **given
            )
            assert text == chat["prompt"]
        else:
            assert encode_chat(checkpoint, chat["messages"]) == chat["ids"]


def test_dream_reasoner_is_no_dream_though_it_has_its_model_type(tmp_path) -> None:
    """No file of it was within reach: SDAR's, whose shape it has, under its names."""
    folder = tmp_path / "reasoner"
    shutil.copytree(folder_of(SDAR), folder)
    names = {"architectures": ["DreamForCausalLM"], "model_type": "Dream", "block_size": 8}
    change_json(folder / "config.json", **names)
    found = load(folder, device="cpu", dtype="float32")
    config = found.model.config
    assert (found.family.name, config.block_size, config.logit_shift) == ("dreamreasoner", 8, False)
    assert found.sampling["cache"] == "exact"
    with torch.no_grad():
        ids = torch.arange(20)[None]
        wanted = official(SDAR).model(ids).logits[:, -4:]
        assert not torch.equal(
            found.model(ids).logits[:, :4], official(SDAR).model(ids).logits[:, :4]
        )
        config.block_size = 4
        torch.testing.assert_close(found.model(ids).logits[:, -4:], wanted)


@pytest.mark.parametrize(
    ("name", "family", "size", "left"),
    [
        (FAST, None, 4, {"alg": "maskgit_plus", "threshold": 0.9}),
        ("llada", "dparallel-llada", 4, {"alg": "entropy", "entropy_threshold": 0.5}),
        (
            "llada",
            "d3llm-llada",
            32,
            {"block_length": 32, "surest_anywhere": True, "stop_rule": "first_end"}
            | {"alg": "entropy", "entropy_threshold": 0.5},
        ),
    ],
)
def test_what_other_blocks_rule_out_of_a_family_s_settings_is_left_out(
    name, family, size, left, tmp_path
) -> None:
    write_lora_adapter(tmp_path, folder_of(name), target_modules=["q_proj"])
    write_json(tmp_path / "network_config.json", {"block_size": size})
    found = load(folder_of(name), tmp_path, family=family, device="cpu")
    assert dict(found.sampling) == {"cache": "exact"} | left
    assert softmask.generate(found, "One day", max_new_tokens=8, chat=False).token_ids


def test_what_an_adapter_s_blocks_rule_out_of_its_base_s_file_is_left_out(tmp_path) -> None:
    base = write_dream_folder(tmp_path / "base")
    said = {"block_length": 16, "cache": "dual", "refresh_every": 4, "lookahead": 8, "top_p": 0.9}
    write_json(base / "sampling_config.json", said)
    write_lora_adapter(tmp_path / "adapter", base, target_modules=["q_proj"])
    write_json(tmp_path / "adapter" / "network_config.json", {"block_size": 4})
    exported = export(tmp_path / "out", base, tmp_path / "adapter")
    for found in (load(base, tmp_path / "adapter", device="cpu"), load(exported, device="cpu")):
        assert dict(found.sampling) == {"cache": "exact", "top_p": 0.9}
        assert softmask.generate(found, "One day", max_new_tokens=8).token_ids
