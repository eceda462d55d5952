"""The mixture, its parameters, the filters and the schedule equal the published ones."""

from __future__ import annotations

import goldens
import pytest
import torch

from softmask.config import SamplingConfig, SoftMaskConfig, soft_mask_from_published
from softmask.decoding.rule_views import statistics_of
from softmask.decoding.sampler import denoise
from softmask.decoding.unmask import RowNoise, choose_tokens, filter_logits, transfer_count
from softmask.logits import entropy
from softmask.rule_inputs import MaskedRows
from softmask.rules import find
from softmask.soft_mask import SoftMask, feedback, make_mixer, rate

CASES = goldens.facts("p_sm")["cases"]


def mix(name: str, table):
    """Soft tokens and lambda (B, L) of a golden case, at its masked positions."""
    case, data = CASES[name], goldens.tensors("p_sm")
    ids = data["input_ids"]
    mode = "topk" if case["alg"] == "mixinputs_with_topk" else "temperature"
    config = SoftMaskConfig(
        mode=mode,
        k=case["k"],
        scale=case["scale"],
        offset=case["centre"],
        steepness=case["steepness"],
        temperature=case["mixture_temp"],
        schedule=case["schedule"],
    )
    rows = (ids == goldens.MASK_ID).flatten().nonzero().squeeze(1)
    seen = feedback(data["logits"].flatten(0, 1)[rows], rows, config.k, mode)
    left, start = torch.tensor([case["num_masks"]]), torch.tensor([case["max_gen_length"]])
    mixer = make_mixer(config, ids.device)
    rate_N = rate(config.schedule, left, start).expand(len(rows))
    soft, lambda_N = mixer(ids, seen, table, rate_N)
    lambda_BL = torch.zeros(ids.numel()).index_copy(0, rows, lambda_N).view_as(ids)
    return soft, lambda_BL


@pytest.mark.parametrize("name", CASES)
def test_the_mixture_equals_the_published_dense_one(name: str) -> None:
    data = goldens.tensors("p_sm")
    table = goldens.model().model.embed_tokens.weight
    soft, lambda_BL = mix(name, table)
    torch.testing.assert_close(
        lambda_BL, data[f"{name}.lambda"].view_as(lambda_BL), atol=1e-6, rtol=0
    )
    embeds = soft.embed(table)
    torch.testing.assert_close(embeds, data[f"{name}.inputs_embeds"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", [n for n in CASES if CASES[n]["schedule"] == "none"])
def test_the_weights_equal_the_published_probabilities(name: str) -> None:
    soft, _ = mix(name, torch.eye(512))
    dense = soft.embed(torch.eye(512))
    torch.testing.assert_close(dense, goldens.tensors("p_sm")[f"{name}.p_sm"], atol=1e-6, rtol=0)


@pytest.mark.parametrize("temperature", ["1", "0.7"])
def test_the_entropy_equals_the_published_one(temperature: str) -> None:
    data = goldens.tensors("p_sm")
    ours = -entropy(data["logits"].flatten(0, 1) / float(temperature))
    expected = data[f"neg_entropy_T{temperature}"].flatten()
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["trace.topk3.linear", "trace.temp.none"])
def test_the_inner_values_of_a_whole_run_equal_the_published_ones(name: str) -> None:
    data = goldens.tensors("trace")
    kwargs = goldens.facts("generate")[f"entropy.s8.{name.removeprefix('trace.')}"]["kwargs"]
    soft = soft_mask_from_published(kwargs, "golden")
    attention = torch.nn.functional.pad(data[f"{name}.attention_mask"], (0, 16), value=1)
    canvas = torch.nn.functional.pad(data[f"{name}.input_ids"], (0, 16), value=goldens.MASK_ID)
    model, recorded = goldens.model(), []
    hook = model.model.register_forward_pre_hook(
        lambda module, args, kwargs: recorded.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    try:
        steps = list(
            denoise(
                model, canvas, SamplingConfig(steps=6), attention_mask_BL=attention, soft_mask=soft
            )
        )
    finally:
        hook.remove()
    assert torch.equal(torch.stack([s.canvas_BL for s in steps]), data[f"{name}.history"])
    real = attention.bool()
    # A packed forward takes the rows by their length.
    rows = attention.sum(1).argsort(stable=True)
    for i, step in enumerate(steps[:-1]):
        expected = data[f"{name}.lambda"][i]
        torch.testing.assert_close(step.lambda_BL[real], expected[real], atol=1e-5, rtol=0)
        embeds = data[f"{name}.inputs_embeds_for_next_step.{i}"]
        packed = embeds[rows][real[rows]]
        torch.testing.assert_close(recorded[i + 1][0], packed, atol=1e-5, rtol=0)


@pytest.mark.parametrize("entry", goldens.facts("transparency_head")["transforms"])
def test_raw_parameters_and_their_values_equal_the_published_head(entry) -> None:
    init = entry["init"]
    mask = SoftMask(
        init["scale"], init["centre"], init["steepness"], init["temperature"], mode="temperature"
    )
    raw = {
        "raw_scale": mask.raw_scale,
        "raw_centre_neg": mask.raw_offset,
        "raw_steep": mask.raw_steepness,
        "raw_temperature": mask.raw_temperature,
    }
    for name, value in raw.items():
        assert value.item() == pytest.approx(entry["raw"][name], rel=1e-5, abs=1e-6)
    actual = {
        "scale": mask.scale,
        "centre": mask.offset,
        "steepness": mask.steepness,
        "temperature": mask.temperature,
    }
    for name, value in actual.items():
        assert value.item() == pytest.approx(entry["actual"][name], rel=1e-5, abs=1e-8)
    written = entry["transparency_config_json_bf16_rounded"]
    read = soft_mask_from_published(written, "golden")
    assert read.scale == written["transparency_scale"]
    assert read.offset == written["transparency_centre"]


@pytest.mark.parametrize("name", goldens.facts("sample_tokens"))
def test_tokens_and_confidences_under_filters_equal_the_published_ones(name: str) -> None:
    data, settings = goldens.tensors("sample_tokens"), dict(goldens.facts("sample_tokens")[name])
    alg = "maskgit_plus"
    if settings.pop("margin_confidence", False):
        alg = "topk_margin"
    elif settings.pop("neg_entropy", False):
        alg = "entropy"
    config = SamplingConfig(alg=alg, **settings)
    logits = data["logits"]
    noise = RowNoise(None, logits.device)
    counts = [len(logits)]
    choice = choose_tokens(logits, config, lambda width: noise.exponential(counts, width))
    assert torch.equal(choice.tokens_N, data[f"{name}.x0"])
    confidence = find("commit", alg)(MaskedRows(statistics_of(choice)))
    torch.testing.assert_close(confidence, data[f"{name}.confidence"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("name", "top_p", "top_k"), [("top_p0.9", 0.9, None), ("top_k5", None, 5)])
def test_the_filters_keep_what_the_published_ones_keep(name, top_p, top_k) -> None:
    data = goldens.tensors("sample_tokens")
    kept = filter_logits(data["logits"], top_p, top_k) > torch.finfo(torch.float32).min
    assert torch.equal(kept, data[f"{name}.kept"].bool())


@pytest.mark.parametrize("entry", goldens.facts("transfer_schedule"), ids=str)
def test_the_number_of_tokens_per_step_equals_the_published_one(entry) -> None:
    left, transfers = entry["num_masks"], []
    for step in range(entry["steps"]):
        transfers.append(transfer_count(left, step, entry["steps"], entry["eps"]))
        left -= transfers[-1]
    assert transfers == entry["transfers"]


@pytest.mark.parametrize("name", ["topk1", "topk3", "temp"])
def test_the_sparse_head_of_the_language_experiments_is_the_same_mixture(name: str) -> None:
    data, facts = goldens.tensors("mdlm_head"), goldens.facts("mdlm_head")
    init, ids = facts[name]["init"], data["xt"]
    mode = "temperature" if name == "temp" else "topk"
    mask = SoftMask(
        init["init_scale"],
        init["init_centre"],
        init["init_steep"],
        init.get("init_temperature", 1.0),
        mode=mode,
        k=init["mixinputs_k"],
    )
    rows = (ids == facts["mask_index"]).flatten().nonzero().squeeze(1)
    seen = feedback(data["log_p_x0"].flatten(0, 1)[rows], rows, mask.k, mode)
    soft, _ = mask(ids, seen, data["embedding"])
    embeds = soft.embed(data["embedding"])
    torch.testing.assert_close(embeds, data[f"{name}.embeds"], atol=1e-5, rtol=0)
    embeds.sum().backward()
    expected = facts[name]["grads_of_embeds_sum"]
    assert mask.raw_scale.grad.item() == pytest.approx(expected["raw_scale"], rel=1e-3)
    assert mask.raw_offset.grad.item() == pytest.approx(expected["raw_centre_neg"], rel=1e-3)
    assert mask.raw_steepness.grad.item() == pytest.approx(expected["raw_steep"], rel=1e-3)
