"""What filters keep: the nucleus by a sort of values, and what is likely beside the likeliest."""

from __future__ import annotations

import pytest
import torch
from transformers import MinPLogitsWarper

from softmask.decoding import unmask


@pytest.mark.parametrize("top_p", [1e-6, 0.3, 0.9, 0.999999])
def test_a_nucleus_is_the_one_of_a_stable_sort(top_p) -> None:
    torch.manual_seed(0)
    logits_NV = torch.randn(24, 300) * torch.logspace(-2, 1, 24)[:, None]
    logits_NV[::3] = logits_NV[::3].round()  # many are equal
    logits_NV[1] = 0.0
    logits_NV[2, 5:] = unmask.FLOOR
    found = unmask.filter_logits(logits_NV, top_p, None)
    dropped_NV = unmask._beyond_nucleus_by_id(logits_NV, top_p)
    assert torch.equal(found, logits_NV.masked_fill(dropped_NV, unmask.FLOOR))


@pytest.mark.parametrize("min_p", [1e-6, 0.1, 1.0])
def test_min_p_keeps_what_is_likely_beside_the_likeliest_as_in_transformers(min_p) -> None:
    torch.manual_seed(0)
    logits_NV = torch.randn(24, 300) * torch.logspace(-2, 1, 24)[:, None]
    kept = unmask.filter_logits(logits_NV, None, None, min_p) > unmask.FLOOR
    theirs = MinPLogitsWarper(min_p)(None, logits_NV)
    assert torch.equal(kept, theirs > -torch.inf)
    assert min_p == 1e-6 or kept.sum() < kept.numel()
    assert kept.any(1).all()


def test_filters_keep_what_each_of_them_keeps() -> None:
    torch.manual_seed(0)
    logits_NV = torch.randn(24, 300)
    one_by_one = [(0.9, None, None), (None, 40, None), (None, None, 0.1)]
    each = [unmask.filter_logits(logits_NV, *one) > unmask.FLOOR for one in one_by_one]
    together = unmask.filter_logits(logits_NV, 0.9, 40, 0.1) > unmask.FLOOR
    assert torch.equal(together, each[0] & each[1] & each[2])
