"""Rows that stay for several forwards: who is visited when, what is revealed, what is carried."""

from __future__ import annotations

import itertools
import shutil

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from runs import equal_tensors, log_of, pretraining, recipe_of
from tiny import tiny_model

from softmask.logits import statistics
from softmask.soft_mask import Feedback, SoftMask, feedback_of
from softmask.training.batches import CorpusOrder
from softmask.training.callbacks import LITTLE_LAMBDA
from softmask.training.config import StageConfig, TrainConfig, TrajectoryConfig
from softmask.training.corpus import Batch
from softmask.training.objective import trajectory_loss
from softmask.training.run import train
from softmask.training.schedule import GlobalBatch, TrainingSchedule
from softmask.training.trajectory import Trajectories, Visits, reveal, shares

ROWS, LENGTH = 4, 10


# Who is visited when


@given(
    st.integers(1, 5), st.integers(1, 3), st.integers(1, 5), st.integers(0, 4), st.integers(0, 40)
)
def test_a_row_is_visited_at_every_stage_in_successive_updates(
    period, forwards, slots, place, first
) -> None:
    """Of rows that began after the first update; those of the first one begin anywhere."""
    visits = Visits(TrajectoryConfig(period * forwards, forwards), slots)
    for slot in range(slots):
        seen = [visits.of((first + u) * slots + slot, place) for u in range(3 * period)]
        whole = [list(g) for _, g in itertools.groupby(seen, key=lambda one: one.row)][1:-1]
        for group in whole:
            assert [one.stage for one in group] == [forwards * i for i in range(period)]
        rows = [one.row for one in seen]
        assert rows == sorted(rows)
        assert {row % slots for row in rows} == {slot}


def test_the_rows_of_an_update_are_at_all_stages_from_the_first_one_on() -> None:
    visits = Visits(TrajectoryConfig(8), slots=1)
    for update in (0, 1, 13):
        stages = [visits.of(update, place).stage for place in range(16)]
        assert sorted(stages) == sorted([*range(8)] * 2)
    several = Visits(TrajectoryConfig(4), slots=8)
    assert sorted(several.of(slot).stage for slot in range(8)) == [0, 0, 1, 1, 2, 2, 3, 3]


@given(st.integers(1, 12), st.integers(0, 500))
def test_what_is_revealed_of_a_row_grows_from_stage_to_stage(stages, row) -> None:
    config = TrajectoryConfig(stages)
    visits = [Visits(config, 1).of(stages * row + stage) for stage in range(stages)]
    found = shares(config, 3, visits)
    assert all(low <= found[low, 0] * stages < low + 1 for low in range(stages))
    assert torch.equal(found[1:, 0], found[:-1, 1])
    assert found[-1, 1] == 1


# What is revealed


@given(st.integers(0, 10_000))
def test_the_surest_masks_are_revealed_and_one_is_left(seed) -> None:
    generator = torch.Generator().manual_seed(seed)
    maskable = torch.rand(ROWS, LENGTH, generator=generator) < 0.8
    masked = maskable & (torch.rand(ROWS, LENGTH, generator=generator) < 0.7)
    sure = torch.rand(ROWS, LENGTH, generator=generator)
    share = torch.rand(ROWS, generator=generator)
    left = reveal(masked, maskable, sure, share)
    assert not (left & ~masked).any()
    for row in range(ROWS):
        before, after = int(masked[row].sum()), int(left[row].sum())
        wanted = round(float((1 - share[row]) * maskable[row].sum()))
        assert after == min(before, max(1, min(wanted, before - 1)))
        gone = masked[row] & ~left[row]
        if gone.any() and after:
            assert sure[row][gone].min() >= sure[row][left[row]].max()


# The loss, against one written out


def soft_model():
    model = tiny_model()
    model.soft_mask = SoftMask(0.6, -4.0, 1.0, k=3)
    return model


def rows_under_way(model):
    """ids, masks, what may be masked, shares of two stages."""
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(0, 60, (ROWS, LENGTH), generator=generator)
    maskable = torch.ones_like(ids, dtype=torch.bool)
    maskable[:, :2] = False
    masked = maskable & (torch.rand(ids.shape, generator=generator) < 0.9)
    return ids, masked, maskable, torch.tensor([[0.1, 0.4, 0.7]]).expand(ROWS, -1)


def state_of(model, ids, masked) -> Feedback:
    """What a forward without feedback says of the masks; without gradient."""
    rows = masked.flatten().nonzero().squeeze(1)
    with torch.no_grad():
        logits = model(ids.masked_fill(masked, model.mask_id), rows=rows).logits
    return feedback_of(statistics(logits, 3), rows, 3)


def written_out(model, ids, masked, maskable, shares_BW, seen, reads):
    """The losses of two forwards row by row, from whole logits; the gradient goes through both."""
    values = []
    for number in (1, 2):
        rows = masked.flatten().nonzero().squeeze(1)
        noisy = ids.masked_fill(masked, model.mask_id)
        logits = model(noisy, feedback=seen, rows=rows).logits
        losses = F.cross_entropy(logits, ids.flatten()[rows], reduction="none")
        of_row = rows // LENGTH
        values.append(torch.stack([losses[of_row == row].mean() for row in range(ROWS)]).mean())
        chance = torch.full((ROWS, LENGTH), -1.0)
        chance.view(-1)[rows] = logits.softmax(-1).amax(-1).detach()
        masked = reveal(masked, maskable, chance, shares_BW[:, number])
        said = feedback_of(statistics(logits, 3), rows, 3)
        said = said.at(masked.flatten()[rows])
        seen = said.at(reads[said.rows_N // LENGTH])
    return (values[0] + values[1]) / 2, masked, said


def update_begun(reading: list[bool]):
    """A model, its rows, what is revealed of them, and the state that some of them read."""
    model = soft_model()
    ids, masked, maskable, shares_BW = rows_under_way(model)
    reads = torch.tensor(reading)
    state = state_of(model, ids, masked)
    seen = state.at(reads[state.rows_N // LENGTH])
    return model, ids, masked, maskable, shares_BW, reads, seen


@pytest.mark.parametrize("reading", [[True] * 4, [True, False, True, False], [False] * 4])
def test_two_forwards_have_the_loss_and_the_gradient_that_is_written_out(reading) -> None:
    model, ids, masked, maskable, shares_BW, reads, seen = update_begun(reading)
    expected, left, said = written_out(model, ids, masked, maskable, shares_BW, seen, reads)
    expected.backward()
    wanted = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    loss, left_now, said_now = trajectory_loss(
        model, ids, masked, maskable, shares_BW, seen, reads_B=reads, soft=True
    )
    loss.value.backward()
    torch.testing.assert_close(loss.value, expected)
    assert torch.equal(left, left_now)
    assert torch.equal(said.ids_NK, said_now.ids_NK)
    torch.testing.assert_close(said.entropy_N, said_now.entropy_N)
    for name, gradient in wanted.items():
        torch.testing.assert_close(model.get_parameter(name).grad, gradient, msg=name)


def test_masks_are_revealed_in_an_order_that_is_given_in_place_of_the_surest() -> None:
    model, ids, masked, maskable, shares_BW, reads, seen = update_begun([True] * 4)
    order = torch.rand(masked.shape, generator=torch.Generator().manual_seed(8))
    surest, left = (
        trajectory_loss(
            model, ids, masked, maskable, shares_BW, seen, reads_B=reads, soft=True, order_BL=given
        )
        for given in (None, order)
    )
    assert torch.equal(left[1], reveal(masked, maskable, order, shares_BW[:, -1]))
    assert not torch.equal(left[1], surest[1])
    rows = left[1].flatten().nonzero().squeeze(1)
    assert torch.equal(left[2].rows_N, rows)


def test_the_gradient_goes_through_what_the_first_forward_carries() -> None:
    """The second loss alone moves the weights by way of the first forward too."""
    model = soft_model()
    ids, masked, maskable, shares_BW = rows_under_way(model)
    reads = torch.ones(ROWS, dtype=torch.bool)
    loss, _, _ = trajectory_loss(
        model, ids, masked, maskable, shares_BW, None, reads_B=reads, soft=True
    )
    whole = torch.autograd.grad(loss.value, model.lm_head.weight)[0]
    first, left, said = trajectory_loss(
        model, ids, masked, maskable, shares_BW[:, :2], None, reads_B=reads, soft=True
    )
    said = Feedback(*(x if x is None else x.detach() for x in said))
    second, _, _ = trajectory_loss(
        model, ids, left, maskable, shares_BW[:, 1:], said, reads_B=reads, soft=True
    )
    torch.testing.assert_close(loss.value, (first.value + second.value) / 2)
    apart = torch.autograd.grad((first.value + second.value) / 2, model.lm_head.weight)[0]
    assert (whole - apart).norm() > 1e-3 * whole.norm()  # rounding: 1e-7


def test_the_plain_twin_has_the_same_way_of_revealing_and_no_feedback() -> None:
    model = tiny_model()
    ids, masked, maskable, shares_BW = rows_under_way(model)
    reads = torch.zeros(ROWS, dtype=torch.bool)
    loss, left, _ = trajectory_loss(
        model, ids, masked, maskable, shares_BW[:, :2], None, reads_B=reads, soft=False
    )
    soft = soft_model()
    other, same, _ = trajectory_loss(
        soft, ids, masked, maskable, shares_BW[:, :2], None, reads_B=reads, soft=True
    )
    assert torch.equal(left, same)
    assert loss.value == other.value
    assert loss.mixed is None


@pytest.mark.parametrize("reading", [[True] * 4, [False, False, True, False], [False] * 4])
def test_the_reported_lambda_is_that_of_the_masks_that_read_something(reading) -> None:
    """In two forwards, of which the first has four rows' state, or one's, or none."""
    model, ids, masked, maskable, shares_BW, reads, seen = update_begun(reading)
    read = [seen]
    _, _, said = trajectory_loss(
        model, ids, masked, maskable, shares_BW[:, :2], seen, reads_B=reads, soft=True
    )
    read.append(said.at(reads[said.rows_N // LENGTH]))
    loss, _, _ = trajectory_loss(
        model, ids, masked, maskable, shares_BW, read[0], reads_B=reads, soft=True
    )
    entropy = torch.cat([model.soft_mask.entropy(seen) for seen in read])
    assert loss.reading == len(entropy)
    if not any(reading):
        assert loss.mixed is loss.entropy is None
        return
    mixed = 0.6 * torch.sigmoid(4.0 - entropy)
    assert loss.entropy.item() == pytest.approx(entropy.mean().item())
    assert loss.mixed.item() == pytest.approx(mixed.mean().item())


# What is kept between updates


def test_rows_come_back_as_they_were_left_wherever_they_lie(tmp_path) -> None:
    """Another length of the canvas keeps what both have; new rows begin with masks alone."""
    model = soft_model()
    ids, masked, maskable, shares_BW = rows_under_way(model)
    under_way = Trajectories(3)
    entered = under_way.enter(0, [10, 11, 12, 13], masked)
    assert entered.feedback(torch.ones(ROWS, dtype=torch.bool)) is None
    reads = torch.ones(ROWS, dtype=torch.bool)
    _, left, said = trajectory_loss(
        model, ids, masked, maskable, shares_BW[:, :2], None, reads_B=reads, soft=True
    )
    under_way.leave(0, entered, left, said)
    under_way.save(tmp_path / "rows.safetensors")
    again = Trajectories(3)
    again.load(tmp_path / "rows.safetensors", torch.device("cpu"))
    for kept in (under_way, again):
        back = kept.enter(0, [10, 11, 12, 13], masked)
        assert torch.equal(back.masked_BL, left)
        seen = back.feedback(reads)
        for name in ("rows_N", "entropy_N", "ids_NK", "logits_NK", "total_N"):
            assert torch.equal(getattr(seen, name), getattr(said, name).detach())
        moved = kept.enter(0, [13, 14], torch.ones(2, LENGTH + 3, dtype=torch.bool))
        assert torch.equal(moved.masked_BL[0, :LENGTH], left[3])
        assert moved.masked_BL[0, LENGTH:].all()
        assert moved.masked_BL[1].all()
        rows = moved.feedback(torch.ones(2, dtype=torch.bool)).rows_N
        assert rows.tolist() == left[3].nonzero().squeeze(1).tolist()
        assert kept.enter(1, [10], masked[:1]).feedback(reads[:1]) is None


# Runs


def test_rows_that_read_nothing_count_in_no_logged_lambda(settings, tmp_path) -> None:
    """At 0.3 most forwards read nothing: they are not soft, and make no note of a small lambda."""
    settings["soft_mask"]["offset"] = -7.0
    settings["train"] |= {"trajectory": {"stages": 4, "forwards": 2}, "weighting": "row"}
    rare = {"log_every": 4, "eval_every": 8, "save_every": 8, "eval_at_start": False}
    means, soft, said = [], [], []
    for share in (1.0, 0.3):
        folder = tmp_path / str(share)
        train(recipe_of(settings, soft_probability=share, **rare), folder, report=said.append)
        lines = [line for line in log_of(folder) if "lambda" in line]
        means.append([sum(line[k] for line in lines) / len(lines) for k in ("lambda", "entropy")])
        soft.append(lines[-1]["soft_share"])
    assert soft[1] < soft[0] == 1
    assert means[0][0] > LITTLE_LAMBDA
    assert means[1] == pytest.approx(means[0], rel=0.05)
    assert not [line for line in said if "hardly let in" in line]


@pytest.mark.parametrize(
    ("kind", "forwards", "reveal"),
    [
        ("fine-tuning", 2, "confidence"),
        ("pretraining", 1, "confidence"),
        ("pretraining", 1, "random"),
    ],
)
def test_a_run_that_was_stopped_goes_on_with_its_rows_under_way(
    settings, tmp_path, kind, forwards, reveal
) -> None:
    """To the same bits; rows of different lengths, and of puzzles and stories, side by side."""
    values = settings if kind == "fine-tuning" else pretraining(tmp_path)
    values["train"] |= {
        "trajectory": {"stages": 4, "forwards": forwards, "reveal": reveal},
        "weighting": "row",
        "soft_probability": 0.7,
        "feedback_passes": 1,
        "stages": [],
    }
    every = {"log_every": 1, "eval_every": 4, "save_every": 2, "eval_at_start": False}
    recipe = recipe_of(values, steps=4, **every)
    whole, again = tmp_path / "whole", tmp_path / "again"
    result = train(recipe, whole)
    lines = [line for line in log_of(whole) if "loss" in line]
    read = [line["soft_share"] > 0 for line in lines]
    assert read[0] == (forwards > 1)
    assert any(read[1:])
    # As a kill between the second update and the fourth leaves it.
    shutil.copytree(whole, again)
    for name in ("checkpoint-4", result.name):
        shutil.rmtree(again / name)
    (again / "done.json").unlink()
    train(recipe, again)
    assert log_of(again) == log_of(whole)
    files = [path.relative_to(whole) for path in whole.rglob("*.safetensors")]
    assert any("trajectories" in file.name for file in files)
    assert all(equal_tensors(whole / file, again / file) for file in files)


def test_rows_that_begin_in_a_stage_are_drawn_from_its_corpus() -> None:
    stages = (StageConfig("a", 100), StageConfig("b", 100, puzzle_share=1.0))
    config = TrainConfig(weighting="row", trajectory=TrajectoryConfig(8), stages=stages)
    schedule, size = TrainingSchedule(config, 0), GlobalBatch(1, 1, 1)
    drawn: dict[int, str] = {}

    class Corpus:
        def batch(self, _seed, number, stage):
            drawn[number] = stage.name
            rows = torch.zeros(8, 4, dtype=torch.long)
            return Batch(rows, rows == 0)

    order = CorpusOrder(Corpus(), schedule, size, 1, Visits(config.trajectory, size.size))
    for update in range(200):
        _ = order[update]
    # Generation g begins with update 8 g.
    assert drawn == {number: "a" if 8 * number < 100 else "b" for number in range(26)}


def test_a_coin_for_all_rows_is_refused_where_each_row_draws_for_itself() -> None:
    with pytest.raises(ValueError, match="soft_coin has no effect with trajectory"):
        TrainConfig(weighting="row", trajectory=TrajectoryConfig(8), soft_coin="step")
