"""LLaDA: logits and sampler as its own code has them, whose answers are in goldens/llada."""

from __future__ import annotations

import pytest
import torch
from official import decode, official, read, tensors

from softmask.config import SamplingConfig, SoftMaskConfig
from softmask.decoding import likelihood
from softmask.decoding.batch import Batch
from softmask.decoding.prompts import encode_chat
from softmask.decoding.sampler import Rules
from softmask.decoding.score import score
from softmask.soft_mask import Mixture

FOUND = read("llada", "generate.json")
IDS, PROMPTS, CASES = FOUND["ids"], FOUND["prompts"], {c["name"]: c for c in FOUND["cases"]}
RULES = Rules(end_ids=(IDS["eos"], IDS["eot"]), eos_id=IDS["eos"])
OURS = {"cfg_scale": "guidance", "logits_eos_inf": "suppress_eos"}


def settings(case: dict) -> dict:
    """The options of LLaDA's `generate` under our names."""
    given = dict(case["options"])
    masks, order = given.pop("gen_length"), given.pop("remasking", "low_confidence")
    late = given.pop("confidence_eos_eot_inf", False)
    found = {OURS.get(name, name): value for name, value in given.items()}
    found["alg"] = {"low_confidence": "maskgit_plus"}.get(order, order)
    if late:
        found["late_ends"] = "yes" if case.get("code") == "fixed" else "published"
    own = {"step_schedule": "even", "raw_scores": True, "noise": "float64"}
    return {"masks": masks, "sampling": own | found}


def test_the_original_layout_loads_and_gives_the_logits_of_its_own_code() -> None:
    found, model = tensors("llada"), official("llada").model
    ids, mask = found["input_ids"], found["attention_mask"]
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, found["logits"], rtol=0, atol=5e-5)
        row = model(ids[:1], attention_mask=mask[:1]).logits[mask[:1].bool()]
    torch.testing.assert_close(row, found["logits_masked_row_0"], rtol=0, atol=5e-5)


@pytest.mark.parametrize("name", CASES)
def test_the_sampler_commits_the_same_tokens_in_the_same_steps(name) -> None:
    case = CASES[name]
    prompts = PROMPTS[case["prompts"]]
    decoded = decode(
        "llada",
        prompts["ids"],
        rules=RULES,
        seed=case["seed"],
        padding=prompts["attention_mask"],
        **settings(case),
    )
    assert decoded.tokens == case["tokens"]
    assert decoded.steps == case["step"]


def test_each_option_changes_what_is_written() -> None:
    changed = [case for case in CASES.values() if case["differs_from"]]
    assert len(changed) > 30
    for case in changed:
        assert case["tokens"] != CASES[case["differs_from"]]["tokens"], case["name"]


SOFT = SoftMaskConfig(k=3, scale=0.6, offset=-3.0, steepness=1.0)


@pytest.mark.parametrize("soft_mask", [None, SOFT], ids=["plain", "soft"])
def test_guidance_mixes_the_logits_of_both_branches_which_read_the_same_feedback(soft_mask) -> None:
    """Against two whole forwards a step, written out."""
    model, weight, steps = official("llada").model, 1.5, 6
    prompt = PROMPTS["one"]["ids"]
    decoded = decode(
        "llada",
        prompt,
        steps,
        {"steps": steps, "alg": "maskgit_plus", "step_schedule": "even", "guidance": weight},
        soft_mask=soft_mask,
    )
    given = len(prompt[0])
    ids = torch.tensor(prompt[0] + [model.mask_id] * steps)
    # The same loop with one branch at a time, on a batch that is not guided.
    canvas = ids.clone()
    batch = Batch(model, len(ids))
    plain = SamplingConfig(steps=steps, alg="maskgit_plus", step_schedule="even")
    batch.add(0, ids, plain, soft_mask=soft_mask)
    table = model.model.embed_tokens.weight
    for _ in range(steps):
        masked = canvas == model.mask_id
        tokens = batch.soft.tokens(canvas[None], torch.arange(len(ids)), masked)
        with torch.no_grad():
            seen = tokens.embed(table) if soft_mask else table[canvas][None]
            blind = seen.clone()
            blind[0, :given] = table[model.mask_id]
            both = model(inputs_embeds=torch.cat([seen, blind])).logits
            logits = both[1] + (weight + 1) * (both[0] - both[1])
        chance, token = logits.softmax(-1).max(-1)
        place = chance.masked_fill(~masked, -1).argmax()
        canvas[place] = token[place]
        stays = (canvas == model.mask_id).nonzero().squeeze(1)
        if soft_mask is not None and len(stays):
            entropy = torch.distributions.Categorical(logits=logits[stays]).entropy()
            weights = soft_mask.scale * torch.sigmoid(
                soft_mask.steepness * (-entropy - soft_mask.offset)
            )
            best, best_ids = logits[stays].softmax(-1).topk(soft_mask.k)
            shares = best / best.sum(-1, keepdim=True)
            mixed = torch.cat([1 - weights[:, None], weights[:, None] * shares], dim=1)
            first = torch.full_like(stays, model.mask_id)[:, None]
            put(batch, stays, torch.cat([first, best_ids], 1), mixed, weights)
    assert decoded.tokens == [canvas[given:].tolist()]
    assert decoded.forwards == steps


def put(batch, rows, ids, weights, lambdas) -> None:
    batch.soft.put(rows, Mixture(ids, weights, lambdas, None))


def test_a_guided_sequence_is_decoded_alike_with_others_beside_it_and_with_a_cache() -> None:
    sampling = {"steps": 8, "block_length": 4, "alg": "maskgit_plus", "guidance": 0.7}
    two = PROMPTS["two"]["ids"]
    together = decode("llada", two, 8, sampling)
    assert together.tokens == [decode("llada", [one], 8, sampling).tokens[0] for one in two]
    # A cache that is refreshed in each step has nothing old in it.
    fresh = {"cache": "dual", "refresh_every": 1}
    assert decode("llada", two, 8, sampling | fresh).tokens == together.tokens


def test_guidance_and_hooks_or_a_second_score_are_refused_in_a_sentence() -> None:
    with pytest.raises(ValueError, match="both a second forward"):
        SamplingConfig(guidance=1.0, commit_from="plain")
    with pytest.raises(ValueError, match="guidance must lie in"):
        SamplingConfig(guidance=-1.0)


def test_texts_and_chats_have_the_ids_of_the_official_tokenizer() -> None:
    found, tokenizer = read("llada", "texts.json"), official("llada").tokenizer
    for one in found["texts"]:
        assert tokenizer(one["text"], add_special_tokens=False)["input_ids"] == one["ids"]
        assert tokenizer.decode(one["ids"]) == one["decoded"]
    for chat in found["chats"]:
        messages = [{"role": role, "content": content} for role, content in chat["messages"]]
        assert encode_chat(official("llada"), messages) == chat["ids"]


LIKELIHOODS = read("llada", "likelihood.json")


@pytest.mark.parametrize("number", range(len(LIKELIHOODS["cases"])))
def test_the_estimator_llada_gives_the_likelihood_of_its_own_evaluation(
    number, monkeypatch
) -> None:
    case = LIKELIHOODS["cases"][number]
    pair = LIKELIHOODS["pairs"][case["pair"]]
    # There one generator is all of the program's.
    monkeypatch.setattr(
        likelihood, "generator_for", lambda *_: torch.Generator().manual_seed(case["seed"])
    )
    options = {"samples": case["mc_num"], "batch_size": case["batch_size"]}
    if case["mc_num"] < case["batch_size"]:
        with pytest.raises(ValueError, match="draws groups"):
            score(official("llada"), pair["prompt"], [pair["answer"]], estimator="llada", **options)
        return
    (found,) = score(
        official("llada"),
        pair["prompt"],
        [pair["answer"]],
        estimator="llada",
        guidance=case["cfg_scale"],
        soft_mask="off",
        **options,
    )
    assert -found.nats == pytest.approx(case["log_likelihood"], rel=1e-5)
