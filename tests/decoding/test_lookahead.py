"""A canvas that grows with its blocks: exact where nothing is hidden, and as if by hand."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from test_kv_cache import SOFTS
from test_sampler import SOFT, canvas_of, drain, generators, holed_canvas, only_mask
from tiny import tiny_model

from softmask.config import SamplingConfig
from softmask.decoding.sampler import Rules, denoise
from softmask.serving.engine import Engine, Request

BLOCKS = SamplingConfig(steps=12, block_length=4)
CACHES = {
    "none": {},
    "prefix": {"cache": "prefix"},
    "dual": {"cache": "dual", "refresh_every": 2, "refresh_window": 3},
}
WAYS = {
    "schedule": {},
    "threshold": {"cache": "prefix", "threshold": 0.3},
    "entropy bound": {**CACHES["dual"], "entropy_bound": 2.0},
}


def of(**settings) -> SamplingConfig:
    return dataclasses.replace(BLOCKS, **settings)


@pytest.mark.parametrize("soft", SOFTS.values(), ids=SOFTS)
@pytest.mark.parametrize("cache", CACHES.values(), ids=CACHES)
def test_to_look_at_all_that_is_left_is_to_look_at_everything(soft, cache) -> None:
    model = tiny_model()
    canvas, attention = canvas_of(model, [9, 4])
    settings = {"soft_mask": soft, "rules": only_mask(model), "attention_mask_BL": attention}
    for more in ({}, {"alg": "origin", "temperature": 1.0}):
        both = [
            list(denoise(model, canvas, config, **settings, generators=generators(1, 2)))
            for config in (of(**cache, **more), of(**cache, **more, lookahead=8))
        ]
        for one, other in zip(*both, strict=True):
            assert torch.equal(one.canvas_BL, other.canvas_BL)
            assert one.forwards == other.forwards
            assert one.lambda_BL is None or torch.equal(one.lambda_BL, other.lambda_BL)


@pytest.mark.parametrize("soft", SOFTS.values(), ids=SOFTS)
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_to_look_at_nothing_further_is_to_append_block_after_block(soft, way) -> None:
    model = tiny_model()
    canvas, _ = canvas_of(model, [9])
    rules = only_mask(model)
    grown = drain(model, canvas, of(**way, lookahead=0), soft_mask=soft, rules=rules)
    by_hand, forwards = canvas[:, :9], 0
    for block in range(3):
        canvas_BL = torch.cat([by_hand, canvas[:, 9 + 4 * block : 13 + 4 * block]], dim=1)
        config = of(**way, steps=4)
        last = drain(model, canvas_BL, config, soft_mask=soft, rules=rules)
        by_hand, forwards = last.canvas_BL, forwards + last.forwards
    assert torch.equal(grown.canvas_BL, by_hand)
    assert grown.forwards == forwards


@pytest.mark.parametrize(
    "more",
    [
        {"temperature": 1.0},
        {"cache": "prefix", "threshold": 0.3},
        {"cache": "dual", "refresh_every": 2, "refresh_window": 3},
    ],
    ids=str,
)
def test_rows_that_grow_are_decoded_as_if_alone_in_a_batch_and_on_an_engine(more) -> None:
    model, lengths = tiny_model(), [9, 4, 6]
    canvas, attention = canvas_of(model, lengths)
    config, rules = of(**more, lookahead=3), only_mask(model)
    settings = {"soft_mask": SOFT, "rules": rules}
    seeds = generators(0, 1, 2)
    batch = drain(model, canvas, config, attention_mask_BL=attention, generators=seeds, **settings)
    engine = Engine(model, positions=80, k=SOFT.k)
    handles = []
    for row, length in enumerate(lengths):
        own = canvas[row : row + 1, 9 - length :]
        alone = drain(model, own, config, generators=generators(row), **settings)
        assert torch.equal(alone.canvas_BL[0], batch.canvas_BL[row, 9 - length :])
        assert alone.forwards_B[0] == batch.forwards_B[row]
        ids = tuple(own[0].tolist())
        request = Request(ids, config, soft_mask=SOFT, rules=rules, seed=row)
        handles.append((engine.submit(request), alone.canvas_BL[0].tolist()))
        engine.run_once()
    while engine.run_once():
        pass
    for handle, expected in handles:
        assert list(handle.result().ids) == expected


def test_a_step_computes_its_block_and_what_it_looks_ahead_to() -> None:
    model, computed = tiny_model(), []
    hook = model.model.register_forward_pre_hook(
        lambda module, args, kwargs: computed.append(kwargs["inputs_embeds"].shape[1]),
        with_kwargs=True,
    )
    canvas, attention = canvas_of(model, [9, 4], new=12)
    settings = {"rules": only_mask(model), "attention_mask_BL": attention, "soft_mask": SOFT}
    try:
        steps = list(denoise(model, canvas, of(lookahead=3), **settings))
    finally:
        hook.remove()
    assert computed == [9 + 7 + 4 + 7] * 4 + [9 + 11 + 4 + 11] * 4 + [9 + 12 + 4 + 12] * 4
    assert [step.reach_B for step in steps] == [(16, 16)] * 4 + [(20, 20)] * 4 + [(21, 21)] * 4
    for step in steps[:-1]:
        assert not step.lambda_BL[:, step.reach_B[0] :].any()


def test_an_answer_that_has_ended_never_computes_the_rest_of_its_canvas() -> None:
    model, computed = tiny_model(), []
    hook = model.model.register_forward_pre_hook(
        lambda module, args, kwargs: computed.append(kwargs["inputs_embeds"].shape[1]),
        with_kwargs=True,
    )
    canvas, _ = canvas_of(model, [9], new=80)
    config = SamplingConfig(steps=80, block_length=8, lookahead=8)
    free = drain(model, canvas, config, rules=only_mask(model)).canvas_BL[0, 9:].tolist()
    end, place = next((token, free.index(token)) for token in free if free.index(token) >= 10)
    rules = dataclasses.replace(only_mask(model), end_ids=(end,), stop=True, fill_id=end)
    computed.clear()
    try:
        steps = list(denoise(model, canvas, config, rules=rules))
    finally:
        hook.remove()
    last = steps[-1]
    assert last.left_B == (0,)
    assert last.canvas_BL[0, 9 : 9 + place].tolist() == free[:place]
    assert last.canvas_BL[0, 9 + place :].eq(end).all()
    assert max(computed) == 9 + (place // 8 + 1) * 8 + 8 < canvas.shape[1]


def test_given_text_behind_the_masks_is_always_seen() -> None:
    model = tiny_model()
    canvas = holed_canvas(model)  # both rows end in given tokens
    settings = {"soft_mask": SOFT, "rules": only_mask(model)}
    whole = drain(model, canvas, BLOCKS, **settings)
    assert torch.equal(whole.canvas_BL, drain(model, canvas, of(lookahead=0), **settings).canvas_BL)


def test_an_engine_counts_only_the_masks_that_are_read_at_once() -> None:
    model = tiny_model()
    engine = Engine(model, positions=120, k=3)
    ids = (1,) * 20 + (model.mask_id,) * 80

    def reading(lookahead: int | None, rules: Rules | None = None) -> int:
        config = SamplingConfig(steps=80, block_length=8, lookahead=lookahead)
        rules = rules or only_mask(model)
        request = Request(ids, config, soft_mask=SOFT, rules=rules)
        return engine.limits.check(request)[1]

    assert reading(None) == reading(72) == reading(500) == 5 * reading(8)
    assert reading(8, Rules()) == reading(None)  # masks may come back in any block


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lookahead": 3}, "give block_length too"),
        ({"lookahead": -1, "block_length": 4}, "lookahead must be >= 0"),
    ],
)
def test_a_lookahead_without_a_block_is_refused(settings, message) -> None:
    with pytest.raises(ValueError, match=message):
        SamplingConfig(**settings)


def test_hooks_and_a_lookahead_contradict_each_other() -> None:
    model = tiny_model()
    canvas, _ = canvas_of(model, [5])
    with pytest.raises(ValueError, match="leave out the lookahead"):
        denoise(model, canvas, of(lookahead=0), logits_hook=lambda step, x, logits: logits)
