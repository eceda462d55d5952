"""Held-out bounds: every way on the same masks, equal where they must be, summed as they claim."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_model

from softmask.config import SoftMaskConfig
from softmask.evaluation.held_out import HeldOut, draw, held_out, windows
from softmask.evaluation.measure_config import HeldOutConfig
from softmask.soft_mask import SoftMask
from softmask.training.corpus import train_tokenizer
from softmask.training.objective import masked_diffusion_loss

MODEL = tiny_model()
MASK = MODEL.config.mask_token_id
GENERATOR = torch.Generator().manual_seed(2)
TEXT = [torch.randint(0, 60, (n,), generator=GENERATOR).tolist() for n in (12, 12, 9, 2, 12)]
CONFIG = HeldOutConfig(length=12, times=5, batch_size=4)
SOFT = SoftMaskConfig(scale=0.6, offset=-3.0, steepness=1.0, k=3)
TIMES = st.integers(1, 20)
LETTERS = train_tokenizer([], 270)  # a token a letter


def masks_of(config: HeldOutConfig = CONFIG):
    """(w, t, masked_L) of every window at every time."""
    for w, window in enumerate(TEXT):
        times, draws = draw(window, config)
        for t, row in zip(times, draws, strict=True):
            yield w, t, row < t


def test_texts_are_cut_into_windows_and_a_rest_of_one_token_is_dropped() -> None:
    found = windows(LETTERS, ["abcdefgh", "abcdefg", "", "xy"], 3)
    assert LETTERS.batch_decode(found) == ["abc", "def", "gh", "abc", "def", "xy"]


@pytest.mark.parametrize("texts", [[], ["a", ""]])
def test_text_without_two_tokens_is_refused(texts: list[str]) -> None:
    with pytest.raises(ValueError, match="no two tokens in a row"):
        windows(LETTERS, texts, 8)


@settings(max_examples=50, deadline=None)
@given(window=st.lists(st.integers(0, 60), min_size=2, max_size=20), times=TIMES, steps=TIMES)
def test_each_stratum_has_a_time_and_earlier_masks_hold_the_later_ones(
    window, times, steps
) -> None:
    times_J, draw_JL = draw(window, HeldOutConfig(times=times, steps=steps))
    assert ((times_J * times).ceil() == torch.arange(1, times + 1)).all()
    assert ((times_J > 0) & (times_J <= 1)).all()
    masked = draw_JL < times_J[:, None]
    earlier = draw_JL < (times_J[:, None] + 1 / steps).clamp_max(1.0)
    assert (earlier | ~masked).all()
    assert not earlier[:, 0].any()
    # At t = 1 everything but the context is masked.
    assert (draw_JL[:, 1:] < 1).all()


def test_the_masks_belong_to_the_window_and_the_seed() -> None:
    first = draw(TEXT[0], CONFIG)[1]
    assert torch.equal(first, draw(list(TEXT[0]), CONFIG)[1])
    assert not torch.equal(first, draw(TEXT[1], CONFIG)[1])
    assert not torch.equal(first, draw(TEXT[0], dataclasses.replace(CONFIG, seed=1))[1])


@torch.no_grad()
def objective_nats(soft: bool, model, config: HeldOutConfig) -> list[float]:
    """By window: the training objective's bound on the same masks, summed over its tokens."""
    nats = [[] for _ in TEXT]
    for w, t, masked in masks_of(config):
        ids = torch.tensor([TEXT[w]])
        noisy = ids.masked_fill(masked, MASK)
        loss = masked_diffusion_loss(
            model,
            noisy,
            ids,
            masked[None],
            t[None],
            maskable_BL=torch.arange(len(TEXT[w]))[None] > 0,
            soft=soft,
            weighting="elbo",
        )
        nats[w].append(loss.value.item() * len(TEXT[w]))
    return [statistics.fmean(values) for values in nats]


def check_bound(found: HeldOut, way: str, nats_W: list[float]) -> None:
    tokens = [len(window) - 1 for window in TEXT]
    score = getattr(found.whole, way)
    assert score.nats == pytest.approx(sum(nats_W) / sum(tokens), rel=1e-5)
    assert score.perplexity == pytest.approx(math.exp(score.nats))
    rest = [n - score.nats * size for n, size in zip(nats_W, tokens, strict=True)]
    error = math.sqrt(len(TEXT) / (len(TEXT) - 1) * sum(r * r for r in rest)) / sum(tokens)
    assert score.error == pytest.approx(error, rel=1e-4)


BLOCKS = {"block_size": 4, "block_origin": "prompt"}  # which begin behind the first token
TWICE = dataclasses.replace(CONFIG, times=2)


@pytest.mark.parametrize(
    ("model", "config"),
    [
        (MODEL, CONFIG),
        (tiny_model(**BLOCKS), TWICE),
        pytest.param(tiny_model(**BLOCKS, logit_shift=False), TWICE, marks=pytest.mark.slow),
    ],
    ids=["full", "blocks, shifted", "blocks"],
)
def test_the_plain_and_the_fresh_bound_are_those_of_the_training_objective(model, config) -> None:
    found = held_out(model, TEXT, config, SOFT)
    check_bound(found, "plain", objective_nats(False, model, config))
    model.soft_mask = SoftMask(SOFT.scale, SOFT.offset, SOFT.steepness, k=SOFT.k, exact=True)
    try:
        check_bound(found, "fresh", objective_nats(True, model, config))
    finally:
        model.soft_mask = None
    assert (found.windows, found.tokens) == (5, 42)
    assert found.forwards == 4 * sum(bool(masked.any()) for _, _, masked in masks_of(config))


@torch.no_grad()
def test_counts_accuracy_and_entropy_are_those_of_the_predictions() -> None:
    right, entropies = [], []
    for w, _, masked in masks_of():
        ids = torch.tensor(TEXT[w])
        logits = MODEL(ids.masked_fill(masked, MASK)[None]).logits[0, masked]
        right += (logits.argmax(-1) == ids[masked]).tolist()
        logs = logits.log_softmax(-1)
        entropies += (-logs.exp() * logs).sum(-1).tolist()
    whole = held_out(MODEL, TEXT, CONFIG, None).whole
    assert whole.masked == len(right)
    assert whole.samples == 25
    assert whole.plain.accuracy == pytest.approx(statistics.fmean(right))
    assert whole.plain.entropy == pytest.approx(statistics.fmean(entropies), rel=1e-4)
    assert whole.plain.mean_lambda is None
    assert (whole.fresh, whole.stale, whole.stale_minus_plain) == (None, None, None)


def test_scale_zero_equals_plain_with_both_feedbacks() -> None:
    found = held_out(MODEL, TEXT, CONFIG, SoftMaskConfig(scale=0.0, k=3))
    plain = held_out(MODEL, TEXT, CONFIG, None)
    assert found.forwards == plain.forwards
    pairs = zip([found.whole, *found.by_time], [plain.whole, *plain.by_time], strict=True)
    for part, alone in pairs:
        assert part.plain == alone.plain
        mixed = 0.0 if part.masked else None
        assert part.fresh == part.stale == dataclasses.replace(alone.plain, mean_lambda=mixed)
        assert part.fresh_minus_plain == part.stale_minus_plain
        assert part.fresh_minus_plain.nats == 0


@pytest.mark.parametrize("mode", ["topk", "temperature"])
def test_stale_feedback_of_an_endless_schedule_is_fresh(mode: str) -> None:
    soft = dataclasses.replace(SOFT, mode=mode, schedule="linear")
    found = held_out(MODEL, TEXT, dataclasses.replace(CONFIG, steps=10**9), soft)
    assert found.whole.stale == found.whole.fresh
    assert found.whole.fresh.mean_lambda > 0
    # With few steps the sampler's feedback saw less than it now stands beside.
    coarse = held_out(MODEL, TEXT, dataclasses.replace(CONFIG, steps=2), soft)
    assert coarse.whole.fresh == found.whole.fresh
    assert coarse.whole.stale != found.whole.stale


@torch.no_grad()
@pytest.mark.parametrize("schedule", ["none", "linear"])
def test_stale_feedback_comes_from_the_canvas_one_step_earlier(schedule: str) -> None:
    config = HeldOutConfig(times=1, steps=3, seed=4)
    times, draws = draw(TEXT[0], config)
    ids = torch.tensor([TEXT[0]])
    masked, earlier = draws < times[0], draws < (times[0] + 1 / 3).clamp_max(1.0)
    assert 0 < masked.sum() < earlier.sum()
    model = tiny_model()
    model.soft_mask = SoftMask(SOFT.scale, SOFT.offset, SOFT.steepness, k=SOFT.k, exact=True)
    rows = masked[0].nonzero().squeeze(1)
    seen = model(ids.masked_fill(earlier, MASK), rows=rows, observe=True).feedback
    # Masks left of those that a canvas of 12 tokens, the first one given, begins with.
    rate = 1.0 if schedule == "none" else len(rows) / 11
    table = model.model.embed_tokens.weight
    soft_tokens, lambdas = model.soft_mask(ids.masked_fill(masked, MASK), seen, table, rate)
    output = model(soft_tokens=soft_tokens, rows=rows, labels=ids[0, rows])
    soft = dataclasses.replace(SOFT, schedule=schedule)
    found = held_out(MODEL, TEXT[:1], config, soft).whole.stale
    by_hand = output.losses.sum().item() / times[0].item() / 11
    assert found.nats == pytest.approx(by_hand, rel=1e-5)
    assert found.mean_lambda == pytest.approx(lambdas.mean().item(), rel=1e-5)
    assert found.error is None


def test_the_slices_of_time_add_up_to_the_whole_and_are_json() -> None:
    found = held_out(MODEL, TEXT, dataclasses.replace(CONFIG, times=10), SOFT)
    assert [part.low for part in found.by_time] == [i / 10 for i in range(10)]
    assert sum(part.masked for part in found.by_time) == found.whole.masked
    # Ten times, hence one of every window in each slice: equal weights.
    for way in ("plain", "stale", "fresh_minus_plain"):
        parts = [getattr(part, way).nats for part in found.by_time]
        assert statistics.fmean(parts) == pytest.approx(getattr(found.whole, way).nats)
    difference = found.whole.fresh.nats - found.whole.plain.nats
    assert found.whole.fresh_minus_plain.nats == pytest.approx(difference)
    loaded = json.loads(json.dumps(dataclasses.asdict(found), allow_nan=False))
    assert loaded["whole"]["fresh"]["mean_lambda"] == found.whole.fresh.mean_lambda
    # A time without a window has no slice.
    assert len(held_out(MODEL, TEXT[:1], HeldOutConfig(times=3), None).by_time) <= 3


def test_the_batch_size_changes_nothing() -> None:
    alone, *others = (
        held_out(MODEL, TEXT, dataclasses.replace(CONFIG, batch_size=size), SOFT).whole
        for size in (1, 16, "auto")
    )
    for way, together in itertools.product(("plain", "fresh", "stale"), others):
        one, other = getattr(alone, way), getattr(together, way)
        numbers = dataclasses.asdict(one), dataclasses.asdict(other)
        assert numbers[0].keys() == numbers[1].keys()
        for name, value in numbers[0].items():
            close = None if value is None else pytest.approx(value, rel=1e-4)
            assert numbers[1][name] == close, (way, name)


@pytest.mark.parametrize("wrong", [[], [[1, 2], [3]]])
def test_windows_without_two_tokens_are_refused(wrong: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="at least 2 tokens each"):
        held_out(MODEL, wrong, CONFIG, None)


def test_a_window_beyond_the_models_own_is_refused() -> None:
    with pytest.raises(ValueError, match="129 tokens, but the model's own is 128"):
        held_out(MODEL, [[1] * 129], CONFIG, None)


@pytest.mark.parametrize(
    ("name", "least"), [("length", 2), ("times", 1), ("batch_size", 1), ("steps", 1)]
)
def test_settings_out_of_range_are_refused(name: str, least: int) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least {least}, not {least - 1}"):
        HeldOutConfig(**{name: least - 1})
