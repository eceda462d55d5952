"""Block caches: exact where they recompute everything, and the same for a text in any batch."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from test_sampler import SOFT, canvas_of, drain, holed_canvas, only_mask
from tiny import tiny_model

from softmask.config import SamplingConfig, SoftMaskConfig
from softmask.decoding.batch import Batch
from softmask.decoding.kv_cache import KeyValueStore, bytes_per_position, window
from softmask.decoding.sampler import denoise
from softmask.decoding.sequence import Rules
from softmask.models.packing import Layout, Span

TEMPERATURE = SoftMaskConfig(
    mode="temperature", temperature=0.7, scale=0.8, offset=-3.0, steepness=1.0
)
SOFTS = {"plain": None, "topk": SOFT, "temperature": TEMPERATURE}
BLOCKS = SamplingConfig(steps=12, block_length=4)


@pytest.mark.parametrize("soft", SOFTS.values(), ids=SOFTS)
@pytest.mark.parametrize("cache", ["prefix", "dual"])
@pytest.mark.parametrize("reach", [None, 64], ids=["whole", "a window beyond the text"])
def test_a_cache_refreshed_every_step_is_no_cache(soft, cache, reach) -> None:
    model = tiny_model()
    canvas, attention = canvas_of(model, [9, 4, 6])
    settings = {"soft_mask": soft, "rules": only_mask(model)}
    fresh = dataclasses.replace(BLOCKS, cache=cache, refresh_every=1, refresh_window=reach)
    for given in ({"attention_mask_BL": attention}, {}):
        tokens = canvas if given else holed_canvas(model)
        plain = list(denoise(model, tokens, BLOCKS, **given, **settings))
        cached = list(denoise(model, tokens, fresh, **given, **settings))
        for one, other in zip(plain, cached, strict=True):
            assert torch.equal(one.canvas_BL, other.canvas_BL)
            assert one.forwards == other.forwards
            if one.lambda_BL is not None:
                torch.testing.assert_close(one.lambda_BL, other.lambda_BL)


@pytest.mark.parametrize("soft", SOFTS.values(), ids=SOFTS)
@pytest.mark.parametrize(
    "settings",
    [
        {"cache": "prefix"},
        {"cache": "dual"},
        {"cache": "dual", "refresh_every": 2, "refresh_window": 3},
        {"cache": "dual", "threshold": 0.3},
        {"cache": "prefix", "entropy_bound": 2.0},
    ],
    ids=str,
)
def test_texts_at_different_blocks_are_decoded_as_if_alone(soft, settings) -> None:
    model = tiny_model()
    canvas = holed_canvas(model)
    config = dataclasses.replace(BLOCKS, **settings)
    fixed = {"soft_mask": soft, "rules": only_mask(model)}
    together = list(denoise(model, canvas, config, **fixed))
    for row in range(2):
        alone = list(denoise(model, canvas[row : row + 1], config, **fixed))
        for one, other in zip(alone, together, strict=False):
            assert torch.equal(one.canvas_BL[0], other.canvas_BL[row])
        assert alone[-1].forwards_B[0] == together[-1].forwards_B[row]
        assert together[-1].left_B[row] == 0


def test_caches_change_the_text_which_is_why_they_are_options() -> None:
    model = tiny_model()
    canvas, _ = canvas_of(model, [9, 6], new=24)
    blocks = SamplingConfig(steps=24, block_length=8)
    texts = {
        cache: drain(model, canvas[:, :], dataclasses.replace(blocks, cache=cache)).canvas_BL
        for cache in ("none", "prefix", "dual")
    }
    assert not torch.equal(texts["none"], texts["dual"])
    assert not torch.equal(texts["prefix"], texts["dual"])


def whole_then(model, ids, columns):
    """Logits of these columns in a forward of the whole text, and then of a window of it."""
    length = len(ids)
    previous = torch.arange(length) - 1
    previous[0] = 0
    store, everything = KeyValueStore(length), torch.arange(length)
    rows = torch.tensor(columns)
    found = []
    for computed in (everything, torch.arange(columns[0] - 1, columns[-1] + 1)):
        spans = [Span(len(computed), 0, length)]
        layout = Layout(computed, computed, previous, spans, store)
        with torch.no_grad():
            hidden = model.hidden(ids[computed][None], layout)
        found.append(model.lm_head(hidden[layout.sources(rows, shift=True)]))
    return found


def test_a_window_predicts_its_first_position_too() -> None:
    # Dream reads position s off the row before it: a window that began at s could not.
    model = tiny_model()
    ids = torch.randint(0, 60, (20,), generator=torch.Generator().manual_seed(1))
    whole, part = whole_then(model, ids, list(range(8, 13)))
    torch.testing.assert_close(whole, part)
    config = SamplingConfig(block_length=4, cache="dual")
    assert window(config, 8, 12, 20, age=1, shift=True) == (7, 13)
    assert window(config, 8, 12, 20, age=1, shift=False) == (8, 13)


@pytest.mark.parametrize(
    ("settings", "ages"),
    [
        ({"cache": "prefix"}, [(0, 40), (15, 40), (15, 40), (15, 40), (15, 40)]),
        ({"cache": "dual"}, [(0, 40), (15, 20), (15, 20), (15, 20), (15, 20)]),
        (
            {"cache": "dual", "refresh_every": 2, "refresh_window": 6},
            [(0, 40), (15, 20), (9, 26), (15, 20), (9, 26)],
        ),
        (
            {"cache": "dual", "refresh_every": 3},
            [(0, 40), (15, 20), (15, 20), (0, 40), (15, 20)],
        ),
        (
            {"cache": "dual", "refresh_every": 1, "refresh_window": 30},
            [(0, 40), (0, 40), (0, 40), (0, 40), (0, 40)],
        ),
    ],
    ids=str,
)
def test_a_step_computes_the_columns_that_its_cache_does_not_keep(settings, ages) -> None:
    config = SamplingConfig(block_length=4, **settings)
    assert [window(config, 16, 19, 40, age, shift=True) for age in range(5)] == ages


@pytest.mark.parametrize("soft", SOFTS.values(), ids=SOFTS)
def test_a_block_begins_with_a_forward_of_the_committed_tokens(soft, monkeypatch) -> None:
    # Keys of a committed token must not be those of the mixture that it was when it was chosen.
    model, seen = tiny_model(), []
    hidden = type(model).hidden

    def record(self, tokens, layout):
        seen.append((tokens, layout.flat_T.tolist()))
        return hidden(self, tokens, layout)

    monkeypatch.setattr(type(model), "hidden", record)
    canvas, _ = canvas_of(model, [5], new=12)
    config = SamplingConfig(steps=12, block_length=4, cache="dual", threshold=1.0)
    steps = list(denoise(model, canvas, config, soft_mask=soft, rules=only_mask(model)))
    assert len(seen) == len(steps) == 12
    for index, (tokens, columns) in enumerate(seen):
        first = 5 + index // 4 * 4
        if index % 4:
            assert columns == list(range(first - 1, first + 4))
            continue
        assert columns == list(range(17))
        if index and soft is not None:
            committed = steps[index - 1].canvas_BL[0] != model.config.mask_token_id
            assert (tokens.weights_BLK[0, committed, 0] == 1).all()
            assert torch.equal(
                tokens.ids_BLK[0, committed, 0], steps[index - 1].canvas_BL[0, committed]
            )
            assert (tokens.weights_BLK[0, ~committed, 0] < 1).all()


def test_soft_state_stays_where_a_step_does_not_look() -> None:
    model = tiny_model()
    canvas, _ = canvas_of(model, [5], new=12)
    config = SamplingConfig(steps=12, block_length=4, cache="dual", threshold=1.0)
    steps = list(denoise(model, canvas, config, soft_mask=SOFT, rules=only_mask(model)))
    later = slice(9, 17)
    for step in steps[1:4]:
        assert torch.equal(step.lambda_BL[0, later], steps[0].lambda_BL[0, later])
        assert (step.lambda_BL[0, later] > 0).all()
    assert not torch.equal(steps[4].lambda_BL[0, 13:], steps[3].lambda_BL[0, 13:])


def test_a_store_takes_what_its_formula_says() -> None:
    model = tiny_model()
    batch = Batch(model, 40, cached=True)
    canvas, _ = canvas_of(model, [5], new=12)
    config = SamplingConfig(steps=12, block_length=4, cache="dual")
    batch.add(3, canvas[0], config, rules=only_mask(model))
    for _ in range(2):
        batch.step()
    assert batch.store.bytes == 40 * bytes_per_position(model)


def test_a_batch_taken_back_repeats_its_step() -> None:
    model = tiny_model()
    canvas, _ = canvas_of(model, [5], new=12)
    batch = Batch(model, 50, cached=True)
    for start, soft in ((0, SOFT), (20, TEMPERATURE)):
        batch.add(
            start,
            canvas[0],
            SamplingConfig(steps=12, block_length=4, cache="dual", temperature=0.5),
            soft_mask=soft,
            rules=Rules(suppressed=(model.config.mask_token_id,)),
            generator=torch.Generator().manual_seed(start),
        )
    for _ in range(4):
        batch.step()
    saved = batch.save()
    results = []
    for _ in range(2):
        batch.restore(saved)
        for _ in range(3):
            batch.step()
        results.append((batch.canvas_P.clone(), batch.soft.lambda_P.clone(), batch.forwards))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    assert results[0][2] == results[1][2]


def test_texts_come_and_go_without_a_trace_on_those_that_stay() -> None:
    model = tiny_model()
    canvas, _ = canvas_of(model, [5, 9], new=12)
    rules = only_mask(model)
    config = SamplingConfig(steps=12, block_length=4, cache="dual")
    alone = drain(model, canvas[:1, 4:], config, soft_mask=SOFT, rules=rules).canvas_BL[0]
    batch = Batch(model, 60, cached=True)
    batch.add(0, canvas[1], config, soft_mask=TEMPERATURE, rules=rules)
    for _ in range(3):
        batch.step()
    mine = batch.add(30, canvas[0, 4:], config, soft_mask=SOFT, rules=rules)
    for _ in range(3):
        batch.step()
    batch.drop(batch.sequences[0])
    other = batch.add(0, canvas[1, 3:], dataclasses.replace(config, steps=7), rules=rules)
    while not mine.is_done:
        batch.step()
    assert torch.equal(batch.canvas_P[30:47], alone)
    assert other.step > 0


@pytest.mark.parametrize(
    "settings", [{"refresh_every": 2}, {"refresh_window": 2}, {"cache": "dual"}]
)
def test_settings_that_would_do_nothing_are_refused(settings) -> None:
    with pytest.raises(ValueError, match=r"give (cache|block_length) too"):
        SamplingConfig(**settings)
    with pytest.raises(ValueError, match="give that too"):
        SamplingConfig(cache="dual", block_length=4, refresh_window=3)


def test_hooks_and_a_cache_contradict_each_other() -> None:
    model = tiny_model()
    canvas, _ = canvas_of(model, [5])
    config = SamplingConfig(steps=4, block_length=4, cache="dual")
    with pytest.raises(ValueError, match="leave out the cache"):
        denoise(model, canvas, config, logits_hook=lambda step, x, logits: logits)


def test_an_attention_mask_with_a_gap_is_refused() -> None:
    model = tiny_model()
    canvas, attention = canvas_of(model, [5])
    attention[0, 2] = 0
    with pytest.raises(ValueError, match="one stretch"):
        denoise(model, canvas, SamplingConfig(steps=4), attention_mask_BL=attention)


def test_padding_is_not_computed() -> None:
    model, computed = tiny_model(), []
    hook = model.model.register_forward_pre_hook(
        lambda module, args, kwargs: computed.append(kwargs["inputs_embeds"].shape[1]),
        with_kwargs=True,
    )
    try:
        canvas, attention = canvas_of(model, [20, 2], new=6)
        config = SamplingConfig(steps=3)
        drain(model, canvas, config, attention_mask_BL=attention, rules=only_mask(model))
    finally:
        hook.remove()
    assert set(computed) == {26 + 8}


def test_a_finished_row_is_no_longer_computed() -> None:
    model, computed = tiny_model(), []
    hook = model.model.register_forward_pre_hook(
        lambda module, args, kwargs: computed.append(kwargs["inputs_embeds"].shape[1]),
        with_kwargs=True,
    )
    try:
        canvas = holed_canvas(model)
        canvas[1, 3:] = 1  # two masks are left in this row
        config = SamplingConfig(steps=12, threshold=1.0)
        last = drain(model, canvas, config, rules=only_mask(model))
    finally:
        hook.remove()
    assert computed == [60, 60] + [30] * 10
    assert last.forwards_B == (12, 2)
    assert last.forwards == 12


def test_columns_of_a_plan_are_those_of_the_masks() -> None:
    from softmask.decoding.schedule import StepSchedule

    masked = np.zeros(30, dtype=bool)
    masked[[2, 3, 4, 9, 20, 21, 22]] = True
    plan = StepSchedule(masked, SamplingConfig(steps=9, block_length=3))
    assert [plan.bounds(b) for b in range(3)] == [(2, 4), (9, 21), (22, 22)]
    assert plan.left_before(21, 0) == 5
    assert plan.left_before(30, 0) == 7
