"""From rows to masked batches: the published collator's semantics, and draws by number of row."""

from __future__ import annotations

import itertools

import goldens
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from softmask.training.batches import (
    Collator,
    ConversationOrder,
    Validation,
    draw_times,
    mask,
    pad,
    padded_length,
)
from softmask.training.config import (
    ConversationConfig,
    NoiseConfig,
    SourceConfig,
    StageConfig,
    TrainConfig,
    TrajectoryConfig,
)
from softmask.training.schedule import GlobalBatch, TrainingSchedule
from softmask.training.trajectory import Visits

MASK, PAD = 63, 0
PUBLISHED_NOISE = NoiseConfig(t_low=0.2, t_high=0.8, per_row=False, floor=1e-3)
CHATS = ConversationConfig(sources=(SourceConfig("x"),))


def fresh(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rows_of(lengths, prompts, first_draw=0):
    return [
        {
            "input_ids": [1 + (i + n) % 60 for i in range(length)],
            "prompt_length": prompt,
            "id": f"file:{n}",
            "draw": first_draw + n,
        }
        for n, (length, prompt) in enumerate(zip(lengths, prompts, strict=True))
    ]


def collator(**changes) -> Collator:
    settings = {
        "global_batch": GlobalBatch(2, 1, 2),
        "noise": PUBLISHED_NOISE,
        "train": TrainConfig(),
    }
    settings |= {"seed": 1, "two_passes": True} | changes
    return Collator(
        conversations=CHATS,
        schedule=TrainingSchedule(settings["train"], 100),
        mask_token_id=MASK,
        pad_token_id=PAD,
        **settings,
    )


EXAMPLES = goldens.facts("collator")["exact_seeded_examples"]


@pytest.mark.parametrize("case", EXAMPLES, ids=lambda case: f"seed{case['seed']}-t{case['t_in']}")
def test_padding_and_masks_equal_the_published_collators(case) -> None:
    """The published collator restarts its generator for every draw: so does this test."""
    facts = goldens.facts("collator")
    rows = [
        {"input_ids": ids, "prompt_length": prompt}
        for ids, prompt in zip(case["raw_input_ids"], case["prompt_lengths"], strict=True)
    ]
    batch = pad(rows, CHATS, facts["pad_token_id"], fresh(case["seed"]))
    assert batch.ids_BL.shape[1] == case["padded_length"]
    time = 1 / case["dsigma"]
    times = torch.full((len(rows),), time)
    made = mask(batch, times, PUBLISHED_NOISE, facts["mask_token_id"], fresh(case["seed"]))
    assert (1 - 1e-3) * time + 1e-3 == pytest.approx(case["p_mask"], rel=1e-6)
    assert made["noisy_BL"].tolist() == case["input_ids"]
    labels = made["ids_BL"].masked_fill(~made["masked_BL"], -100)
    assert labels.tolist() == case["labels"]
    if case["t_in"] is None:
        drawn = draw_times(len(rows), PUBLISHED_NOISE, fresh(case["seed"]))
        assert drawn.unique().numel() == 1


def test_statistics_are_the_published_ones() -> None:
    """Shares of masked tokens and lengths of 1,500 batches, against 4,000 published ones."""
    expected = goldens.facts("collator")["statistics"]
    made, rows = collator(), rows_of((expected["longest_input"], 14), (6, 9))
    shares, lengths = [], []
    for draw in range(1500):
        batch = made([{**row, "draw": draw * 2 + n} for n, row in enumerate(rows)])
        masked = batch["masked_BL"]
        assert masked.any(1).all()
        assert not masked[0, :6].any()
        assert not masked[1, :9].any()
        assert (batch["noisy_BL"] == MASK).eq(masked).all()
        assert torch.equal(batch["noisy_BL"][~masked], batch["ids_BL"][~masked])
        (time,) = batch["times_B"].unique()
        shares.append((1 - 1e-3) * time.item() + 1e-3)
        lengths.append(masked.shape[1])
    deciles = torch.tensor(shares).quantile(torch.arange(1, 10) / 10)
    torch.testing.assert_close(deciles, torch.tensor(expected["p_mask_deciles"]), atol=0.03, rtol=0)
    assert expected["p_mask_min"] - 1e-3 < min(shares)
    assert max(shares) < expected["p_mask_max"] + 1e-3
    histogram = expected["padded_length_histogram"]
    assert set(lengths) == set(map(int, histogram))
    for length, count in histogram.items():
        share = lengths.count(int(length)) / len(lengths)
        assert share == pytest.approx(count / expected["n"], abs=0.04)


@given(
    st.lists(st.integers(2, 30), min_size=1, max_size=4),
    st.integers(0, 10_000),
    st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_every_row_has_a_mask_of_its_own_and_no_prompt_is_masked(lengths, draw, per_row) -> None:
    """Also where a prompt fills its whole row: a pad behind it is masked then."""
    prompts = [max(1, length - length % 3) for length in lengths]
    noise = NoiseConfig(t_low=0.001, t_high=0.01, per_row=per_row)
    batch = collator(noise=noise)(rows_of(lengths, prompts, draw))
    masked = batch["masked_BL"]
    free = torch.arange(masked.shape[1]) >= torch.tensor(prompts)[:, None]
    assert not (masked & ~free).any()
    assert masked.any(1)[free.any(1)].all()
    assert masked.shape[1] % 8 == 0
    assert batch["times_B"].shape == (len(lengths),)


def test_collating_changes_nothing_in_its_rows_and_gives_the_same_again() -> None:
    rows = rows_of((20, 14), (6, 9))
    before = [list(row["input_ids"]) for row in rows]
    first, second = collator()(rows), collator()(rows)
    assert [row["input_ids"] for row in rows] == before
    assert all(torch.equal(first[k], second[k]) for k in first if torch.is_tensor(first[k]))
    assert first["row_ids"] == ["file:0", "file:1"]


def test_other_seeds_and_other_draws_mask_otherwise() -> None:
    rows = rows_of((40, 40), (5, 5))
    first = collator()(rows)["times_B"]
    assert not torch.equal(first, collator(seed=2)(rows)["times_B"])
    assert not torch.equal(first, collator()(rows_of((40, 40), (5, 5), 2))["times_B"])


def test_times_of_rows_are_stratified_on_request() -> None:
    noise = NoiseConfig(t_low=0.2, t_high=0.8, per_row=True)
    times = draw_times(40, noise, fresh(0)).sort().values
    assert torch.equal(((times - 0.2) / 0.6 * 40).floor(), torch.arange(40.0))


def test_the_padded_length_is_a_multiple_and_wastes_less_than_one() -> None:
    for longest, extra, multiple in itertools.product((1, 8, 17), (0, 7, 49), (1, 8)):
        length = padded_length(longest, extra, multiple)
        assert length % multiple == 0
        assert 0 <= length - longest - extra < multiple


@pytest.mark.parametrize("coin", ["batch", "step"])
def test_soft_or_plain_is_the_same_on_every_device(coin) -> None:
    train = TrainConfig(soft_coin=coin, feedback_passes=3)
    two = collator(train=train, global_batch=GlobalBatch(1, 2, 3))
    choices = [two.coins(draw) for draw in range(0, 600)]
    assert choices[::2] == choices[1::2]
    assert 0.35 < sum(soft for soft, _ in choices) / 600 < 0.65
    assert {passes for _, passes in choices} == {1, 2, 3}
    if coin == "step":
        # ... and then also the same as on one device: nothing but the update decides.
        one = collator(train=train, global_batch=GlobalBatch(1, 1, 6))
        assert choices == [one.coins(draw) for draw in range(600)]
    assert not any(collator(two_passes=False).coins(draw)[0] for draw in range(50))


def test_a_stage_may_have_feedback_of_more_passes_than_the_run() -> None:
    stages = (StageConfig("a", 300), StageConfig("b", 300, feedback_passes=3))
    found = collator(train=TrainConfig(stages=stages), global_batch=GlobalBatch(1, 1, 1))
    assert {passes for _, passes in map(found.coins, range(300))} == {1}
    assert {passes for _, passes in map(found.coins, range(300, 600))} == {1, 2, 3}


def test_an_epoch_has_every_row_once_in_a_seeded_order() -> None:
    rows = rows_of((5,) * 11, (2,) * 11)
    order = ConversationOrder(rows, 3, 25)
    ids = [order[draw]["id"] for draw in range(25)]
    assert sorted(ids[:11]) == sorted(ids[11:22]) == sorted(row["id"] for row in rows)
    assert ids[:11] != ids[11:22]
    assert [ConversationOrder(rows, 3, 25)[draw]["id"] for draw in (24, 0, 13)] == [
        ids[draw] for draw in (24, 0, 13)
    ]
    assert [order[draw]["draw"] for draw in (0, 13)] == [0, 13]
    assert [ConversationOrder(rows, 4, 25)[draw]["id"] for draw in range(11)] != ids[:11]


def test_validation_has_the_same_times_and_masks_whatever_the_runs_seed() -> None:
    rows = [{k: v for k, v in row.items() if k != "draw"} for row in rows_of((20,) * 5, (6,) * 5)]
    found = [list(Validation(collator(seed=seed), rows, 4).batches("all", 0, 1)) for seed in (1, 9)]
    for (first, _), (second, _) in zip(*found, strict=True):
        assert all(torch.equal(first[key], second[key]) for key in first)
    times = torch.cat([batch["times_B"] for batch, _ in found[0]])
    torch.testing.assert_close(times, torch.linspace(0.2, 0.8, 5))


def test_validation_parts_hold_every_batch_once_and_are_equally_many() -> None:
    rows = rows_of((20,) * 5, (6,) * 5)
    validation = Validation(collator(), rows, 4)  # 3 batches of at most 2
    parts = [list(validation.batches("all", part, 2)) for part in range(2)]
    assert [len(part) for part in parts] == [2, 2]
    counted = [batch for part in parts for batch, counts in part if counts]
    assert sum(len(batch["ids_BL"]) for batch in counted) == 5


def test_rows_that_are_revealed_at_random_have_a_new_order_in_every_update() -> None:
    """One that prefers no position: a row is masked as without a trajectory."""
    visits = Visits(TrajectoryConfig(4, reveal="random"), 1)
    made = collator(global_batch=GlobalBatch(1, 1, 1), visits=visits)
    (row,) = rows_of((12,), (2,))
    places = []
    for draw in range(400):
        order = made([{**row, "draw": draw, "visits": [visits.of(draw)]}])["order_BL"]
        places.append(order[0, :12].argsort().argsort().float())
    # Places 0 to 11: a mean of 5.5, with a standard error of 0.17.
    torch.testing.assert_close(
        torch.stack(places).mean(0), torch.full((12,), 5.5), atol=0.8, rtol=0
    )
    steps = torch.stack(places)
    together = torch.corrcoef(torch.stack([steps[:-1].flatten(), steps[1:].flatten()]))[0, 1]
    assert abs(together) < 0.08  # standard error 0.015


def test_the_surest_are_revealed_where_nothing_else_is_said() -> None:
    visits = Visits(TrajectoryConfig(4), 1)
    made = collator(global_batch=GlobalBatch(1, 1, 1), visits=visits)
    (row,) = rows_of((12,), (2,))
    assert made([{**row, "draw": 0, "visits": [visits.of(0)]}])["order_BL"] is None
