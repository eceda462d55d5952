"""What a commit trusts: equal to what it was where a setting is at its limit, and to by hand."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_commit_rules import sure_model
from test_sampler import SOFT, canvas_of, drain, generators, holed_canvas, only_mask
from tiny import tiny_model

from softmask.config import SamplingConfig
from softmask.decoding.sampler import denoise
from softmask.decoding.schedule import StepSchedule
from softmask.decoding.sequence import Rules
from softmask.serving.engine import Engine, Request

MODEL, SURE = tiny_model(), sure_model()
OFF = {"next_block_at": 1.0, "agreement": 1, "score_temperature": 1.0}
BASES = {
    "schedule": {"steps": 9},
    "threshold": {"steps": 12, "threshold": 0.3, "cache": "dual"},
    "entropies": {"steps": 12, "entropy_threshold": 1.0, "lookahead": 3},
    "draws": {"steps": 7, "temperature": 0.9, "top_p": 0.9, "alg_temp": 0.3, "cache": "prefix"},
}
EARLY = {"steps": 12, "block_length": 4, "next_block_at": 0.5, "entropy_threshold": 1.0}
EVERYTHING = {**EARLY, "agreement": 2, "score_temperature": 1.5, "commit_from": "plain"}
WAYS = {
    "early": EARLY,
    "early and scheduled": {"steps": 9, "block_length": 4, "next_block_at": 0.25},
    "early, dual": {**EARLY, "cache": "dual"},
    "early, prefix, lookahead": {**EARLY, "cache": "prefix", "lookahead": 2},
    "agreement": {"steps": 7, "agreement": 2},
    "agreement, threshold": {"steps": 12, "agreement": 3, "threshold": 0.2},
    "plain scores": {"steps": 9, "commit_from": "plain"},
    "tempered": {"steps": 9, "alg": "topk_margin", "score_temperature": 3.0, "threshold": 0.2},
    "everything": EVERYTHING,
    "everything, dual": {**EVERYTHING, "cache": "dual", "refresh_every": 2, "refresh_window": 1},
    "everything, drawn": {**EVERYTHING, "cache": "prefix", "temperature": 0.8, "top_k": 9},
}


def run(model, canvas, config, soft=SOFT, **more):
    rules = more.pop("rules", only_mask(model))
    return list(denoise(model, canvas, config, soft_mask=soft, rules=rules, **more))


def same(one, other, *, forwards=True) -> None:
    """Two runs: tokens, feedback and forwards of every step, bit by bit."""
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a.canvas_BL, b.canvas_BL)
        assert a.lambda_BL is None or torch.equal(a.lambda_BL, b.lambda_BL)
        assert not forwards or (a.forwards, a.forwards_B) == (b.forwards, b.forwards_B)


@pytest.mark.parametrize("soft", [None, SOFT], ids=["plain", "soft"])
@pytest.mark.parametrize("base", BASES.values(), ids=BASES)
def test_at_their_limits_settings_of_trust_change_nothing(base, soft) -> None:
    canvas = holed_canvas(SURE)
    config = SamplingConfig(block_length=4, **base)
    both = [
        run(SURE, canvas, one, soft, generators=generators(1, 2))
        for one in (config, dataclasses.replace(config, **OFF))
    ]
    same(*both)


@pytest.mark.parametrize("soft", [None, SOFT], ids=["plain", "soft"])
@pytest.mark.parametrize("more", [{}, {"temperature": 1e-6, "top_k": 1}], ids=str)
def test_no_entropy_lies_below_zero(soft, more) -> None:
    canvas, _ = canvas_of(SURE, [5])
    taken = run(SURE, canvas, SamplingConfig(steps=12, entropy_threshold=0.0, **more), soft)
    assert [step.left_B[0] for step in taken] == list(range(11, -1, -1))


@pytest.mark.parametrize("base", BASES.values(), ids=BASES)
def test_without_feedback_a_plain_score_is_the_score(base) -> None:
    canvas = holed_canvas(SURE)
    config = SamplingConfig(block_length=4, **base)
    apart = dataclasses.replace(config, commit_from="plain")
    same(*(run(SURE, canvas, one, None, generators=generators(1, 2)) for one in (config, apart)))
    twice = run(SURE, canvas, apart, SOFT, generators=generators(1, 2))
    assert twice[-1].forwards == 2 * len(twice)


def test_a_plain_score_orders_what_the_soft_forward_says() -> None:
    """By hand: positions by the plain entropies, tokens by the soft logits."""
    canvas, _ = canvas_of(MODEL, [6])
    config = SamplingConfig(steps=12, threshold=1.0, commit_from="plain")
    mask_id, differs = MODEL.config.mask_token_id, 0
    soft = dataclasses.replace(SOFT, scale=1.0, offset=-8.0)
    steps = run(MODEL, canvas, config, soft)
    for before, step in pairwise(steps):
        masked = (before.canvas_BL[0] == mask_id).nonzero().squeeze(1)
        logits = MODEL(before.canvas_BL).logits[0, masked]
        logits[:, mask_id] = -torch.inf
        entropy = torch.distributions.Categorical(logits=logits).entropy()
        best = masked[entropy.argmin()]
        assert step.committed_BL[0].nonzero().squeeze(1).tolist() == [int(best)]
        differs += int(step.canvas_BL[0, best] != logits[entropy.argmin()].argmax())
    assert differs  # tokens are not those of the plain forward


@pytest.mark.parametrize("temperature", [0.5, 4.0])
@pytest.mark.parametrize("alg", ["maskgit_plus", "topk_margin", "entropy"])
def test_a_tempered_score_orders_by_the_tempered_distribution(alg, temperature) -> None:
    canvas, _ = canvas_of(MODEL, [6])
    config = SamplingConfig(steps=12, threshold=1.0, alg=alg, score_temperature=temperature)
    mask_id = MODEL.config.mask_token_id
    for drawn in ({}, {"top_k": 63}):  # read off statistics, and off whole logits
        tokens = canvas.clone()
        for step in run(MODEL, canvas, dataclasses.replace(config, **drawn), None):
            masked = (tokens[0] == mask_id).nonzero().squeeze(1)
            logits = MODEL(tokens).logits[0, masked]
            logits[:, mask_id] = -torch.inf
            chances = (logits / temperature).softmax(-1)
            first, second = chances.topk(2).values.unbind(1)
            sure = {
                "maskgit_plus": first,
                "topk_margin": first - second,
                "entropy": (chances * (chances + 1e-30).log()).sum(-1),
            }[alg]
            tokens[0, masked[sure.argmax()]] = logits[sure.argmax()].argmax()
            assert torch.equal(step.canvas_BL, tokens)


def test_agreement_commits_what_has_led_for_so_many_forwards() -> None:
    canvas, _ = canvas_of(SURE, [6], new=16)
    config = SamplingConfig(steps=16, threshold=0.0, agreement=3)  # all may go that agree
    taken = run(SURE, canvas, config)
    led, held = torch.zeros_like(canvas), 0
    seen = torch.full_like(canvas, -1)
    masked = canvas == SURE.config.mask_token_id
    for step in taken:
        led = torch.where(step.candidate_BL == seen, led + 1, 1)
        seen, agrees = step.candidate_BL, (led >= 3) & masked
        left = int(masked.sum())
        if bool(agrees.any()):
            assert torch.equal(step.committed_BL, agrees)
        else:
            assert int(step.committed_BL.sum()) == 1 or left == 1
        held += int((masked & ~agrees).sum())
        masked &= ~step.committed_BL
    assert held
    assert not masked.any()


@settings(max_examples=40, derandomize=True, deadline=None)
@given(
    blocks=st.lists(st.integers(0, 4), min_size=1, max_size=5),
    share=st.sampled_from([0.25, 0.5, 0.75, 1.0]),
    steps=st.integers(5, 25),
    rule=st.sampled_from([{}, {"threshold": 0.5}]),
)
def test_a_block_opens_when_the_share_of_the_one_before_is_decided(
    blocks, share, steps, rule
) -> None:
    masked = torch.ones(4 * len(blocks), dtype=torch.bool).numpy()
    config = SamplingConfig(steps=steps, block_length=4, next_block_at=share, **rule)
    schedule = StepSchedule(masked, config)
    schedule.left = list(blocks)
    if not sum(blocks) or (not rule and share == 1):
        return  # nothing is left; the published schedule goes by steps
    step = schedule.at(steps // 2)
    assert step.block == next(i for i, left in enumerate(blocks) if left)
    open_blocks = blocks[step.block : step.last + 1]
    counted = sum(blocks[step.block : schedule.counted(step) + 1])
    assert min(1, step.commits) <= step.commits <= counted
    for i, left in enumerate(open_blocks[:-1]):
        reached = 4 - left >= share * 4
        assert reached or (not rule and sum(open_blocks[: i + 1]) < step.commits)
    if step.last + 1 < len(blocks):
        assert 4 - blocks[step.last] < share * 4


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_rows_are_decoded_as_if_alone_in_a_batch_and_on_an_engine(way) -> None:
    canvas, config, rules = holed_canvas(SURE), SamplingConfig(**way), only_mask(SURE)
    together = run(SURE, canvas, config, generators=generators(1, 2))
    assert together[-1].left_B == (0, 0)
    with Engine(SURE, positions=200, k=3) as engine:
        handles = [
            engine.submit(Request(tuple(ids), config, soft_mask=SOFT, rules=rules, seed=seed))
            for ids, seed in zip(canvas.tolist(), (1, 2), strict=True)
        ]
        results = [handle.result(60) for handle in handles]
    for row, result in enumerate(results):
        alone = run(SURE, canvas[row : row + 1], config, generators=generators(row + 1))
        assert torch.equal(alone[-1].canvas_BL[0], together[-1].canvas_BL[row])
        assert list(result.ids) == together[-1].canvas_BL[row].tolist()
        assert result.forwards == alone[-1].forwards == together[-1].forwards_B[row]


@pytest.mark.parametrize("way", [EARLY, EVERYTHING], ids=["early", "everything"])
@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_a_cache_that_is_renewed_each_step_is_no_cache(way, cache) -> None:
    canvas, free = holed_canvas(SURE), SamplingConfig(**way)
    renewed = dataclasses.replace(free, cache=cache, refresh_every=1)
    one, other = run(SURE, canvas, free), run(SURE, canvas, renewed)
    assert [step.forwards_B for step in one] == [step.forwards_B for step in other]
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a.canvas_BL, b.canvas_BL)


@pytest.mark.parametrize("lookahead", [None, 1], ids=["whole", "ahead"])
def test_a_window_covers_the_open_blocks_and_all_is_computed_that_is_read(
    lookahead, monkeypatch
) -> None:
    seen, hidden = [], type(MODEL).hidden

    def record(self, tokens, layout):
        seen.append((layout.flat_T.tolist(), layout.shape[0].length))
        return hidden(self, tokens, layout)

    monkeypatch.setattr(type(MODEL), "hidden", record)
    canvas, _ = canvas_of(MODEL, [5], new=16)
    rule = {"threshold": 1.0, "next_block_at": 0.5, "lookahead": lookahead}
    config = SamplingConfig(steps=16, block_length=4, cache="dual", **rule)
    steps = run(MODEL, canvas, config, None)
    known, ahead = set(), 21 if lookahead is None else lookahead
    for index, (columns, length) in enumerate(seen):
        block, decided = divmod(index, 4)
        last = min(block + (decided >= 2), 3)  # the next one has opened
        begins = index == 0 or decided == 0 or (decided == 2 and lookahead and block < 3)
        assert length == min(21, 9 + 4 * last + ahead)
        low, high = (0, length) if begins else (4 + 4 * block, 9 + 4 * last)
        assert columns == list(range(low, high))
        known |= set(columns)
        assert set(range(length)) <= known
    assert steps[-1].left_B == (0,)


def test_blocks_that_open_early_take_fewer_forwards_and_stop_where_a_text_ends() -> None:
    canvas, _ = canvas_of(SURE, [5], new=32)
    base = {"steps": 32, "block_length": 4, "entropy_threshold": 1.0}
    full, early = (
        drain(SURE, canvas, SamplingConfig(**base, next_block_at=at), rules=only_mask(SURE))
        for at in (None, 0.25)
    )
    assert early.left_B == full.left_B == (0,)
    assert early.forwards < full.forwards
    ends = tuple(early.canvas_BL[0, 14:18].tolist())
    rules = Rules(suppressed=(SURE.config.mask_token_id,), end_ids=ends, stop=True, fill_id=ends[0])
    config = SamplingConfig(**base, next_block_at=0.25, cache="dual")
    for soft in (None, SOFT):
        last = run(SURE, canvas, config, soft, rules=rules)[-1]
        written = last.canvas_BL[0, 5:].tolist()
        first = next(i for i, token in enumerate(written) if token in ends)
        assert set(written[first:]) <= set(ends)
        assert last.forwards <= 32


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"entropy_threshold": -1.0}, "entropy_threshold must be >= 0"),
        ({"entropy_threshold": 1.0, "threshold": 0.5}, "give one of them"),
        ({"next_block_at": 0.5}, "give block_length too"),
        ({"next_block_at": 0.0, "block_length": 4}, r"must lie in \(0, 1\]"),
        ({"agreement": 0}, "agreement must be at least 1"),
        ({"commit_from": "both"}, "commit_from must be one of soft, plain"),
        ({"steps": 10**12}, "steps must be at most 1000000, not 1000000000000"),
        ({"score_temperature": 101.0}, "score_temperature must lie"),
        ({"temperature": 1e38}, "temperature must be 0 or lie between 1e-06 and 100, not be 1e"),
        ({"score_temperature": 0.0}, "score_temperature must lie"),
        ({"alg": "agreement"}, "agreement is a setting of its own"),
        *(
            ({"alg": "origin", "block_length": 4, **one}, f"{next(iter(one))} compares")
            for one in (
                {"next_block_at": 0.5},
                {"agreement": 2},
                {"commit_from": "plain"},
                {"score_temperature": 2.0},
            )
        ),
    ],
)
def test_settings_of_trust_that_cannot_be_are_refused_in_a_sentence(values, message) -> None:
    with pytest.raises(ValueError, match=message):
        SamplingConfig(**values)


def test_hooks_see_one_forward_a_step() -> None:
    canvas, _ = canvas_of(MODEL, [5])
    with pytest.raises(ValueError, match="leave out the commit_from"):
        denoise(
            MODEL,
            canvas,
            SamplingConfig(steps=4, commit_from="plain"),
            logits_hook=lambda step, x, logits: logits,
        )
