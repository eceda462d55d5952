"""Corruption: what is masked, and how much."""

from __future__ import annotations

import torch

from softmask.training.noise import WINDOW, corrupt, sample_times


def test_every_row_has_a_mask_and_none_outside_what_may_be_masked() -> None:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 9, (200, 12), generator=generator)
    maskable = torch.rand(200, 12, generator=generator) < 0.6
    maskable[0] = False
    times = sample_times(200, 0.0, 1.0, generator)
    noisy, masked, scored = corrupt(ids, maskable, times, 63, generator)
    assert not (masked & ~maskable).any()
    assert masked.any(1)[maskable.any(1)].all()
    assert not masked[0].any()
    assert torch.equal(noisy == 63, masked)
    assert torch.equal(scored, masked)
    assert torch.equal(noisy[~masked], ids[~masked])
    share = (masked & maskable).sum(1) / maskable.sum(1).clamp_min(1)
    assert abs(share[times > 0.9].mean() - 0.95) < 0.06
    assert share[times < 0.1].mean() < 0.3


def test_without_a_mask_in_any_case_a_row_is_masked_with_its_probability_alone() -> None:
    ids = torch.arange(4).expand(4000, -1)
    may = torch.ones_like(ids, dtype=torch.bool)
    times = torch.full((4000,), 0.1)
    drawn = [
        corrupt(ids, may, times, 63, torch.Generator().manual_seed(0), at_least_one=one).masked_BL
        for one in (True, False)
    ]
    assert abs(drawn[1].float().mean() - 0.1) < 0.01
    assert abs((~drawn[1].any(1)).float().mean() - 0.9**4) < 0.03
    has_some = drawn[1].any(1)
    assert torch.equal(drawn[0][has_some], drawn[1][has_some])


def test_left_to_right_rows_are_whole_in_front_and_masked_behind_a_window() -> None:
    generator = torch.Generator().manual_seed(0)
    ids = torch.zeros(400, 60, dtype=torch.long)
    maskable = torch.arange(60).expand(400, -1) >= 10
    times = sample_times(400, 0.0, 1.0, generator)
    _, masked, scored = corrupt(ids, maskable, times, 63, generator, left_to_right=1.0)
    assert masked.any(1).all()
    assert not masked[:, :10].any()
    first = masked.int().argmax(1)
    # Behind the last token that is there, all is masked; it stands at most a window behind the
    # first mask.
    last_kept = 59 - (~masked).int().flip(1).argmax(1)
    assert (last_kept - first < WINDOW).all()
    assert first.float().std() > 10
    # What is scored lies in the window; every row has some of it.
    assert not (scored & ~masked).any()
    assert scored.any(1).all()
    assert torch.equal(scored.int().argmax(1), first)
    last_scored = 59 - scored.int().flip(1).argmax(1)
    assert (last_scored - first < WINDOW).all()
    _, mixed, _ = corrupt(ids, maskable, times, 63, generator, left_to_right=0.5)
    shares = mixed[:, 10:].float().mean(1)
    assert 0.35 < shares.mean() < 0.65


def test_times_are_stratified_between_their_bounds() -> None:
    times = sample_times(50, 0.2, 0.8, torch.Generator().manual_seed(0)).sort().values
    slices = ((times - 0.2) / 0.6 * 50).floor()
    assert torch.equal(slices, torch.arange(50.0))
