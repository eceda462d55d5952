"""Likelihood estimates: unbiased, exact where they can be, on shared masks, in any batch."""

from __future__ import annotations

import math
import statistics
from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_model

from softmask.config import SamplingConfig, SoftMaskConfig
from softmask.decoding.halves import AsMemoryAllows
from softmask.decoding.likelihood import Estimate, LikelihoodConfig, draw_masks
from softmask.decoding.sampler import denoise
from softmask.evaluation.likelihood import (
    estimates_and_matches,
    greedy_matches,
    negative_log_likelihoods,
    rolling,
    rolling_windows,
)
from softmask.evaluation.standard_errors import clustered_ratio
from softmask.models import DreamModel
from softmask.soft_mask import SoftMask, feedback, rate

MODEL = tiny_model()
MASK = MODEL.config.mask_token_id
CONTEXT, CONTINUATION = [5, 17, 3, 40], [8, 22, 61]
MIXES = {
    "topk": SoftMaskConfig(scale=0.6, offset=-3.0, steepness=1.0, k=3, schedule="linear"),
    "temperature": SoftMaskConfig("temperature", scale=0.5, offset=-3.0, steepness=1.0),
}
TOKENS = st.integers(0, 62)


def texts(least: int, most: int):
    return st.lists(TOKENS, min_size=least, max_size=most)


@torch.no_grad()
def nats_under(mask: tuple[int, ...], soft_mask: SoftMaskConfig | None = None) -> float:
    """Cross-entropy at these places of CONTINUATION, by one or two whole forwards."""
    ids = torch.tensor([CONTEXT + CONTINUATION])
    places = torch.tensor(mask) + len(CONTEXT)
    noisy = ids.index_fill(1, places, MASK)
    logits = MODEL(noisy).logits[0, places]
    if soft_mask is not None:
        values = (soft_mask.scale, soft_mask.offset, soft_mask.steepness, soft_mask.temperature)
        mixer = SoftMask(*values, mode=soft_mask.mode, k=soft_mask.k, exact=True)
        left, start = torch.tensor([len(mask)]), torch.tensor([len(CONTINUATION)])
        seen = feedback(logits, places, soft_mask.k, soft_mask.mode)
        soft_tokens, _ = mixer(
            noisy,
            seen,
            MODEL.model.embed_tokens.weight,
            rate(soft_mask.schedule, left, start),
        )
        logits = MODEL(soft_tokens=soft_tokens).logits[0, places]
    return -logits.log_softmax(-1).gather(1, ids[0, places, None]).sum().item()


def expectation(soft_mask: SoftMaskConfig | None) -> float:
    """The bound itself: all seven masks of three tokens."""
    length = len(CONTINUATION)
    means = [
        statistics.fmean(nats_under(m, soft_mask) for m in combinations(range(length), count))
        for count in range(1, length + 1)
    ]
    return statistics.fmean(length / count * mean for count, mean in enumerate(means, start=1))


def estimate(
    continuation=CONTINUATION, soft_mask: SoftMaskConfig | None = None, **config
) -> Estimate:
    request = (CONTEXT, continuation)
    return negative_log_likelihoods(MODEL, [request], LikelihoodConfig(**config), soft_mask)[0]


@pytest.mark.parametrize("soft_mask", [None, *MIXES.values()], ids=["plain", *MIXES])
def test_many_samples_come_to_the_exact_expectation(soft_mask: SoftMaskConfig | None) -> None:
    found = estimate(soft_mask=soft_mask, samples=20_000)
    assert abs(found.nats - expectation(soft_mask)) < 4 * found.error
    assert found.error < 0.2
    # Seven masks exist, and soft-masking reads each of them twice.
    assert (found.tokens, found.forwards) == (3, 7 if soft_mask is None else 14)


def test_estimates_of_few_samples_are_unbiased() -> None:
    values = [estimate(samples=2, seed=seed).nats for seed in range(300)]
    error = statistics.stdev(values) / math.sqrt(len(values))
    assert abs(statistics.fmean(values) - expectation(None)) < 4 * error


@settings(max_examples=15)
@given(context=texts(1, 6), token=TOKENS, samples=st.integers(1, 100))
def test_a_single_token_is_exact_in_one_forward(context, token, samples) -> None:
    config = LikelihoodConfig(samples=samples)
    (found,) = negative_log_likelihoods(MODEL, [(context, [token])], config)
    with torch.no_grad():
        logits = MODEL(torch.tensor([[*context, MASK]])).logits[0, -1]
    assert found.nats == pytest.approx(-logits.log_softmax(-1)[token].item(), rel=1e-4, abs=1e-5)
    assert (found.error, found.tokens, found.forwards) == (0.0, 1, 1)


def test_a_single_token_takes_two_forwards_with_soft_masking() -> None:
    assert estimate([7], MIXES["topk"]).forwards == 2


@settings(max_examples=40)
@given(
    context=texts(1, 4), length=st.integers(1, 9), rounds=st.integers(1, 6), seed=st.integers(0, 99)
)
def test_samples_cover_every_number_of_masks_equally_often(context, length, rounds, seed) -> None:
    config = LikelihoodConfig(samples=length * rounds, seed=seed)
    counts = draw_masks(context, length, config).sum(dim=1)
    assert counts.bincount(minlength=length + 1).tolist() == [0] + [rounds] * length


def test_every_set_of_as_many_positions_is_equally_likely() -> None:
    masks = draw_masks([1], 4, LikelihoodConfig(samples=24_000))
    pairs = masks[masks.sum(dim=1) == 2].long() @ torch.tensor([1, 2, 4, 8])
    counts = pairs.bincount()[pairs.unique()]
    assert len(counts) == 6
    # 1,000 expected of each: five standard deviations are about 145.
    assert ((counts - 1000).abs() < 145).all()


def test_choices_of_one_context_share_their_masks_and_other_contexts_do_not() -> None:
    config = LikelihoodConfig(samples=32)
    first, again = draw_masks([1, 2], 6, config), draw_masks(torch.tensor([1, 2]), 6, config)
    assert torch.equal(first, again)
    assert not torch.equal(first, draw_masks([1, 3], 6, config))
    assert not torch.equal(first, draw_masks([1, 2], 6, LikelihoodConfig(samples=32, seed=1)))
    # A longer choice ranks the positions both have in the same order: where it masks no more of
    # them than the shorter one, it masks a subset, and the reverse.
    longer = draw_masks([1, 2], 8, config)[:, :6]
    fewer, more = first & longer, first | longer
    assert ((fewer == first) | (more == first)).all(dim=1).all()


def test_equal_continuations_get_equal_estimates() -> None:
    requests = [(CONTEXT, CONTINUATION), (CONTEXT, [1] * 9), (CONTEXT, CONTINUATION)]
    first, _, again = negative_log_likelihoods(MODEL, requests, LikelihoodConfig(samples=16))
    assert first.nats == pytest.approx(again.nats, rel=1e-6)


def test_shared_masks_make_the_difference_of_two_choices_surer() -> None:
    one, other = [8, 22, 61, 4, 33, 12], [8, 22, 61, 4, 33, 13]

    def nats(continuation: list[int], seed: int) -> float:
        return estimate(continuation, samples=4, seed=seed).nats

    ones = [nats(one, seed) for seed in range(40)]
    others = [nats(other, seed) for seed in range(40)]
    paired = [a - b for a, b in zip(ones, others, strict=True)]
    apart = [a - b for a, b in zip(ones, others[1:] + others[:1], strict=True)]
    assert statistics.variance(paired) < 0.5 * statistics.variance(apart)


@pytest.mark.parametrize("soft_mask", [None, *MIXES.values()], ids=["plain", *MIXES])
def test_the_batch_size_changes_nothing(soft_mask: SoftMaskConfig | None) -> None:
    generator = torch.Generator().manual_seed(1)
    requests = [
        tuple(torch.randint(0, 60, (n,), generator=generator).tolist() for n in sizes)
        for sizes in [(1, 1), (3, 7), (9, 2), (2, 5), (20, 1), (4, 12)]
    ]
    alone, together = (
        negative_log_likelihoods(
            MODEL, requests, LikelihoodConfig(samples=6, batch_size=size), soft_mask
        )
        for size in (1, 16)
    )
    for one, other in zip(alone, together, strict=True):
        assert one.nats == pytest.approx(other.nats, rel=1e-4)
        assert one.error == pytest.approx(other.error, rel=1e-3, abs=1e-9)
        assert (one.tokens, one.forwards) == (other.tokens, other.forwards)


def test_scale_zero_equals_plain_and_another_scale_does_not() -> None:
    plain = estimate(samples=8)
    assert estimate(soft_mask=SoftMaskConfig(scale=0.0, k=3), samples=8) == plain
    assert estimate(soft_mask=MIXES["topk"], samples=8).nats != plain.nats


def test_the_soft_mask_of_the_model_is_neither_needed_nor_used() -> None:
    without = estimate(soft_mask=MIXES["topk"], samples=8)
    MODEL.soft_mask = SoftMask(0.9, -1.0, 1.0, k=2)
    try:
        assert estimate(soft_mask=MIXES["topk"], samples=8) == without
    finally:
        MODEL.soft_mask = None


def test_one_sample_knows_no_error() -> None:
    assert math.isnan(estimate(samples=1).error)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (([], [1]), "empty context: give the model's end-of-text token"),
        (([1], []), "empty continuation"),
        (([1] * 100, [2] * 29), "129 tokens, but the model's window is 128"),
    ],
)
def test_a_request_that_cannot_be_estimated_is_refused(request_, message: str) -> None:
    for call in (
        lambda: negative_log_likelihoods(MODEL, [([1], [2]), request_], LikelihoodConfig()),
        lambda: greedy_matches(MODEL, [([1], [2]), request_]),
    ):
        with pytest.raises(ValueError, match=f"request 1 has .*{message}"):
            call()


@settings(max_examples=100)
@given(document=texts(0, 40), size=st.integers(2, 15))
def test_rolling_windows_predict_every_token_once(document: list[int], size: int) -> None:
    windows = rolling_windows(document, 99, size)
    assert [t for _, continuation in windows for t in continuation] == document
    assert all(context and len(context) + len(rest) <= size for context, rest in windows)
    done = 0
    for i, (context, rest) in enumerate(windows):
        assert context == ([99] if i == 0 else document[done - len(context) : done])
        # As much context as fits, and at least half a window of it.
        full = len(context) + len(rest) == size or len(context) == done
        assert i == 0 or (full and len(context) >= size // 2)
        done += len(rest)


def test_rolling_in_windows_of_two_is_exact_and_an_empty_document_has_no_nats() -> None:
    config = LikelihoodConfig(samples=3)
    found, empty = rolling(MODEL, [[4, 9, 9, 30], []], config, prefix_id=0, max_length=2)
    pairs = [([0], [4]), ([4], [9]), ([9], [9]), ([9], [30])]
    by_hand = negative_log_likelihoods(MODEL, pairs, config)
    assert found.nats == pytest.approx(sum(part.nats for part in by_hand), rel=1e-6)
    assert (found.error, found.tokens, found.forwards) == (0.0, 4, 4)
    assert empty == Estimate(0.0, 0.0, 0, 0)


def test_rolling_adds_up_its_windows() -> None:
    config, document = LikelihoodConfig(samples=4), list(range(1, 20))
    (found,) = rolling(MODEL, [document], config, MIXES["topk"], prefix_id=0, max_length=8)
    windows = rolling_windows(document, 0, 8)
    questions = [[number, *document] for number in range(len(windows))]
    parts = negative_log_likelihoods(MODEL, windows, config, MIXES["topk"], questions=questions)
    assert found.nats == pytest.approx(sum(part.nats for part in parts))
    assert found.error == pytest.approx(math.sqrt(sum(part.error**2 for part in parts)))
    with pytest.raises(ValueError, match="between 2 and the model's 128, not 129"):
        rolling(MODEL, [document], config, prefix_id=0, max_length=129)


def greedy(context: list[int], tokens: int, soft_mask: SoftMaskConfig | None) -> list[int]:
    """What the sampler writes for this context alone."""
    canvas = torch.tensor([context + [MASK] * tokens])
    steps = list(denoise(MODEL, canvas, SamplingConfig(steps=tokens), soft_mask=soft_mask))
    return steps[-1].canvas_BL[0, len(context) :].tolist()


@pytest.mark.parametrize("soft_mask", [None, MIXES["topk"]], ids=["plain", "soft"])
def test_a_greedy_match_is_just_what_the_sampler_writes(soft_mask) -> None:
    contexts = [[3], [8, 9], [4, 4, 31, 7], [50, 2, 11]]
    written = [(c, greedy(c, n, soft_mask)) for c in contexts for n in (1, 4)]
    wrong = [(c, [*rest[:-1], (rest[-1] + 1) % 60]) for c, rest in written]
    mixed = [request for pair in zip(written, wrong, strict=True) for request in pair]
    assert greedy_matches(MODEL, mixed, soft_mask, batch_size=3) == [True, False] * 8


def test_a_batch_whose_rows_have_all_missed_takes_no_more_steps() -> None:
    context, forwards = [3, 5], []
    rest = greedy(context, 8, None)
    hook = MODEL.model.register_forward_hook(lambda *_: forwards.append(1))
    try:
        missed = [(t + 1) % 60 for t in rest]
        assert greedy_matches(MODEL, [(context, missed)] * 2) == [False, False]
        assert len(forwards) == 1
        assert greedy_matches(MODEL, [(context, rest), (context, missed)]) == [True, False]
        assert len(forwards) == 8
    finally:
        hook.remove()


def test_a_ratio_of_equal_clusters_has_the_error_of_a_mean() -> None:
    values = [1.0, 4.0, 2.5, 3.0]
    mean, error = clustered_ratio(values, [1.0] * 4)
    assert mean == pytest.approx(statistics.fmean(values))
    assert error == pytest.approx(statistics.stdev(values) / 2)
    # A cluster without weight does not count.
    assert clustered_ratio([*values, 0.0], [1.0] * 4 + [0.0]) == (mean, error)
    assert clustered_ratio([6.0], [4.0]) == (1.5, None)
    with pytest.raises(ValueError, match="nothing to average"):
        clustered_ratio([], [])


@pytest.mark.parametrize("name", ["samples", "batch_size"])
def test_settings_below_one_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least 1, not 0"):
        LikelihoodConfig(**{name: 0})


def test_choices_that_differ_in_their_context_share_their_masks_where_they_are_one_question() -> (
    None
):
    model = tiny_model()
    config = LikelihoodConfig(samples=2)
    # The same rows under the same masks: only what is drawn can tell the estimates apart.
    requests = [([1, 2], [5, 6, 7, 8, 9]), ([1, 2], [5, 6, 7, 8, 9])]
    same = negative_log_likelihoods(model, requests, config, questions=[(7,), (7,)])
    other = negative_log_likelihoods(model, requests, config, questions=[(7,), (8,)])
    assert same[0] == same[1] == other[0]
    assert other[1] != other[0]


def test_blocks_that_begin_where_the_context_ends_are_read_whole() -> None:
    model = tiny_model(block_size=4, block_origin="prompt", logit_shift=False)
    found = {}
    for context in ([1, 2, 3, 4], [1, 2, 3, 4, 5, 6]):  # on the grid from 0, and not
        noisy = torch.tensor([[*context, MASK, MASK, 9, MASK]])
        given = torch.tensor([len(context)])
        for last in (9, 30):
            noisy[0, -2] = last
            with torch.no_grad():
                rows = torch.tensor([len(context)])
                found[last] = model(noisy, rows=rows, prompt_lengths=given).logits
        # The first column of the block sees the third.
        assert not torch.equal(found[9], found[30])
    request = [1, 2, 3, 4, 5, 6], [8, 22, 61, 3]
    ids, exact = torch.tensor([[*request[0], *request[1]]]), 0.0
    for place in range(6, 10):
        noisy = ids.clone()
        noisy[:, place:] = MASK
        with torch.no_grad():
            logits = model(noisy, prompt_lengths=torch.tensor([6])).logits[0, place]
        exact -= logits.log_softmax(-1)[ids[0, place]].item()
    (chain,) = negative_log_likelihoods(model, [request], LikelihoodConfig(estimator="chain"))
    assert chain.nats == pytest.approx(exact, abs=1e-4)


def test_a_block_causal_model_reads_each_block_behind_whole_ones() -> None:
    model, tokens = tiny_model(block_size=4), [8, 22, 61, 3, 9, 30]
    whole = CONTEXT + CONTEXT[:2], tokens  # the blocks 2 + 4
    # The chain: token by token, as if nothing came behind.
    ids = torch.tensor([whole[0] + tokens])
    exact = 0.0
    for place in range(6, 12):
        noisy = ids.clone()
        noisy[:, place:] = MASK
        with torch.no_grad():
            exact -= model(noisy).logits[0, place].log_softmax(-1)[ids[0, place]].item()
    (chain,) = negative_log_likelihoods(model, [whole], LikelihoodConfig(estimator="chain"))
    assert chain.nats == pytest.approx(exact, abs=1e-4)
    # The bound: with every mask of the first block, and many of the second.
    sampled = LikelihoodConfig(samples=4000)
    first = whole[0], tokens[:2]
    parts = [first, (whole[0] + tokens[:2], tokens[2:]), whole]
    one, two, both = negative_log_likelihoods(model, parts, sampled)
    assert both.nats == pytest.approx(one.nats + two.nats, rel=0.02)
    assert both.error == pytest.approx(math.hypot(one.error, two.error), rel=0.1)
    assert both.forwards == 3 + 15
    assert both.nats > chain.nats - 0.5


ONE_STEP = LikelihoodConfig(estimator="one_step")


@pytest.mark.parametrize("mix", [None, *MIXES])
def test_one_step_is_the_sum_of_one_written_out_forward(mix) -> None:
    soft = None if mix is None else MIXES[mix]
    ((one, _),) = estimates_and_matches(MODEL, [(CONTEXT, CONTINUATION)], ONE_STEP, soft)
    assert one.nats == pytest.approx(nats_under((0, 1, 2), soft), abs=1e-4)
    assert (one.error, one.forwards, one.tokens) == (0.0, 1 if soft is None else 2, 3)
    # Without the leading tokens the head gives no logits, but the same sum.
    (streamed,) = negative_log_likelihoods(MODEL, [(CONTEXT, CONTINUATION)], ONE_STEP, soft)
    assert streamed.nats == pytest.approx(one.nats, abs=1e-4)


def test_one_step_is_the_term_of_the_bound_that_masks_everything() -> None:
    request = CONTEXT, [8]
    (bound,) = negative_log_likelihoods(MODEL, [request], LikelihoodConfig())
    ((one, _),) = estimates_and_matches(MODEL, [request], ONE_STEP)
    assert one.nats == pytest.approx(bound.nats, abs=1e-5)


def test_choices_of_several_questions_are_read_in_one_batch_as_they_are_alone() -> None:
    requests = [
        (context, continuation)
        for context in (CONTEXT, [1, 2], [30] * 9)
        for continuation in (CONTINUATION, [4], [9, 9, 50, 7, 2])
    ]
    batches, forward = [], DreamModel.forward

    def seen(model, input_ids, **inputs):
        batches.append(tuple(input_ids.shape))
        return forward(model, input_ids, **inputs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DreamModel, "forward", seen)
        together = estimates_and_matches(MODEL, requests, ONE_STEP, rows=len(requests))
    assert batches == [(9, 14)]
    for rows in (1, 4):
        apart = estimates_and_matches(MODEL, requests, ONE_STEP, rows=rows)
        for (one, match), (other, same) in zip(together, apart, strict=True):
            assert one.nats == pytest.approx(other.nats, abs=1e-5)
            assert (one.forwards, match) == (1, same)


@torch.no_grad()
def test_greedy_of_one_step_writes_the_leading_tokens_of_its_forward_and_never_a_mask() -> None:
    model = tiny_model()
    # The mask would lead wherever its row of the head is the longest.
    model.lm_head.weight[MASK] = 4 * model.lm_head.weight[MASK]
    ids = torch.tensor([[*CONTEXT, MASK, MASK, MASK]])
    logits_LV = model(ids).logits[0, len(CONTEXT) :]
    assert MASK in logits_LV.argmax(-1)
    logits_LV[:, MASK] = -torch.inf
    written = logits_LV.argmax(-1).tolist()
    requests = [(CONTEXT, written), (CONTEXT, [*written[:2], (written[2] + 1) % MASK])]
    found = estimates_and_matches(model, requests, ONE_STEP)
    assert [match for _, match in found] == [True, False]


def test_of_a_block_causal_model_one_step_is_one_a_block() -> None:
    model, tokens = tiny_model(block_size=4), [8, 22, 61, 3, 9, 30]
    ids, exact = torch.tensor([CONTEXT + tokens]), 0.0
    for start, stop in ((4, 8), (8, 10)):
        noisy = ids[:, :stop].clone()
        noisy[:, start:] = MASK
        with torch.no_grad():
            logprobs = model(noisy).logits[0, start:].log_softmax(-1)
        exact -= logprobs.gather(1, ids[0, start:stop, None]).sum().item()
    ((one, _),) = estimates_and_matches(model, [(CONTEXT, tokens)], ONE_STEP)
    assert one.nats == pytest.approx(exact, abs=1e-4)
    assert (one.forwards, one.error) == (2, 0.0)


def test_rows_too_many_for_the_memory_are_scored_in_halves(monkeypatch) -> None:
    requests = [(CONTEXT, [i, i + 1]) for i in range(8)]
    whole = negative_log_likelihoods(MODEL, requests, LikelihoodConfig(), rows=8)
    forward = DreamModel.forward

    def fails(model, input_ids, **inputs):
        if len(input_ids) > 3:
            raise torch.OutOfMemoryError("too large")
        return forward(model, input_ids, **inputs)

    monkeypatch.setattr(DreamModel, "forward", fails)
    memory = AsMemoryAllows()
    parts = negative_log_likelihoods(MODEL, requests, LikelihoodConfig(), rows=8, memory=memory)
    assert memory.halved > 0
    for one, other in zip(whole, parts, strict=True):
        assert one.nats == pytest.approx(other.nats, abs=1e-5)
        assert one.forwards == other.forwards
