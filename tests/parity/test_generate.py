"""diffusion_generate gives the published tokens, step by step."""

from __future__ import annotations

import goldens
import pytest
import torch

CASES = goldens.facts("generate")
EXTRA = goldens.facts("generate_extra")
# Published behaviour that is a fault, or that needs other inputs; tested by themselves below.
OWN_TESTS = {"BUG_unequal_masks", "hooks", "temp_entropy.seed0"}


def run(name: str, data, group: str, **settings):
    attention = data.get(f"{group}.attention_mask")
    settings = {"temperature": 0.0, "top_p": None, "top_k": None} | settings
    settings |= {"return_dict_in_generate": True, "output_history": True}
    result = goldens.model().diffusion_generate(
        data[f"{group}.input_ids"], attention_mask=attention, **settings
    )
    return result, torch.stack(result.history)


@pytest.mark.parametrize("name", CASES)
def test_every_step_equals_the_published_one(name: str) -> None:
    case, data = CASES[name], goldens.tensors("generate")
    wanted = {"alg", "steps", "max_new_tokens", "temperature"}
    settings = {key: case[key] for key in wanted} | case["kwargs"]
    result, history = run(name, data, case["group"], **settings)
    assert torch.equal(history, data[f"{name}.history"])
    assert torch.equal(result.sequences, data[f"{name}.sequences"])


@pytest.mark.parametrize("name", [n for n in EXTRA if n not in OWN_TESTS])
def test_a_single_behaviour_equals_the_published_one(name: str) -> None:
    case, data = EXTRA[name], goldens.tensors("generate_extra")
    if case["seed"] is not None:
        torch.manual_seed(case["seed"])
    result, history = run(name, data, name, **case["kwargs"])
    assert torch.equal(history, data[f"{name}.history"])
    assert torch.equal(result.sequences, data[f"{name}.sequences"])


def test_rows_with_unequal_masks_are_all_filled_and_equal_themselves_alone() -> None:
    # Published: one mean count for the batch; finished tokens become masks, rows stay unfinished.
    case, data = EXTRA["BUG_unequal_masks"], goldens.tensors("generate_extra")
    ids = data["BUG_unequal_masks.input_ids"]
    attention = data["BUG_unequal_masks.attention_mask"]
    result, _ = run("", data, "BUG_unequal_masks", **case["kwargs"])
    assert not (result.sequences == goldens.MASK_ID).any()
    kept = ids != goldens.MASK_ID
    assert torch.equal(result.sequences[:, : ids.shape[1]][kept], ids[kept])
    for row in range(len(ids)):
        start = int((attention[row] == 0).sum())
        alone = goldens.model().diffusion_generate(ids[row : row + 1, start:], **case["kwargs"])
        assert torch.equal(alone.sequences[0], result.sequences[row, start:])


def test_equally_sure_positions_are_chosen_as_published_where_nothing_is_padded() -> None:
    # Filters leave many probabilities of exactly 1. Among them the published choice depends on the
    # row's padding; ours on the row alone, so that it is the same in every batch.
    name = "temp_entropy.seed0"
    case, data = EXTRA[name], goldens.tensors("generate_extra")
    torch.manual_seed(case["seed"])
    _, history = run(name, data, name, **case["kwargs"])
    unpadded = data[f"{name}.attention_mask"].bool().all(dim=1)
    assert unpadded.tolist() == [True, False, False]
    assert torch.equal(history[:, unpadded], data[f"{name}.history"][:, unpadded])


def test_the_hooks_are_called_as_published() -> None:
    case, data = EXTRA["hooks"], goldens.tensors("generate_extra")
    calls, shapes = [], []

    def tokens_hook(step, x, logits):
        calls.append(step)
        shapes.append(None if logits is None else tuple(logits.shape))
        return x

    _result, history = run(
        "",
        data,
        "hooks",
        **case["kwargs"],
        generation_tokens_hook_func=tokens_hook,
        generation_logits_hook_func=lambda step, x, logits: logits,
    )
    assert calls == case["tokens_hook_calls"]
    assert shapes == [None] + [(3, 28, 512)] * (len(calls) - 1)
    assert torch.equal(history, data["hooks.history"])


def test_a_logits_hook_may_forbid_tokens_with_minus_infinity() -> None:
    # Published: an assertion fails when fewer than k tokens are possible.
    data = goldens.tensors("generate_extra")

    def forbid(step, x, logits):
        return logits.index_fill(-1, torch.arange(2, 512), -torch.inf)

    tokens = goldens.model().diffusion_generate(
        data["infill_b1.input_ids"],
        max_new_tokens=8,
        steps=4,
        alg="entropy",
        transparency_alg="mixinputs_with_topk",
        transparency_scale=0.8,
        mixinputs_k=3,
        generation_logits_hook_func=forbid,
    )
    assert tokens[:, -8:].max() < 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"transparency_schedule": "none"}, "transparency_scheduling"),
        ({"transparency_alg": "topk"}, "mixinputs_with_topk"),
        ({"transparency_alg": "mixinputs_with_topk", "transparency_scale": 7}, "scale"),
        ({"alg": "randam"}, "maskgit_plus"),
        ({"steps": 0}, "steps"),
        ({"steps": -3}, "steps"),
        ({"top_k": -2}, "top_k"),
        ({"transparency_alg": "mixinputs_with_temp", "mixture_temp": 0.0}, "temperature"),
        (
            {
                "transparency_alg": "mixinputs_with_topk",
                "transparency_scale": 0.5,
                "mixinputs_k": 600,
            },
            "lower k",
        ),
        ({"max_new_tokens": 400}, "context"),
        ({"num_return_sequences": 0}, "num_return_sequences"),
        ({"mask_token_id": 3}, "mask_token_id"),
    ],
)
def test_what_the_published_code_ignored_or_crashed_on_is_a_clear_error(arguments, message) -> None:
    ids = goldens.tensors("generate")["single.input_ids"]
    settings = {"max_new_tokens": 8, "steps": 8} | arguments
    with pytest.raises(ValueError, match=message):
        goldens.model().diffusion_generate(ids, **settings)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"stps": 3}, "no argument 'stps': did you mean steps"),
        ({3: 3}, "no argument 3"),
        ("x", "generation_config must be a mapping or a GenerationConfig, not 'x'"),
    ],
)
def test_what_a_mapping_names_wrongly_is_an_error_as_an_argument_is(given, message) -> None:
    ids = goldens.tensors("generate")["single.input_ids"]
    with pytest.raises(ValueError, match=message):
        goldens.model().diffusion_generate(ids, given)


def test_nothing_is_taken_from_the_defaults_of_older_configs() -> None:
    # Published under transformers 4: top_k=50 slips in from the global defaults.
    case, data = CASES["entropy.s8.topk3.none"], goldens.tensors("generate")
    result = goldens.model().diffusion_generate(
        data["entropy.s8.input_ids"],
        attention_mask=data["entropy.s8.attention_mask"],
        max_new_tokens=16,
        steps=8,
        alg="entropy",
        **case["kwargs"],
    )
    assert torch.equal(result, data["entropy.s8.topk3.none.sequences"])
