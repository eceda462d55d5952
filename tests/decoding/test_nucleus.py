"""The nucleus by sorted values is the one by a sort with ids, also where logits are equal."""

from __future__ import annotations

import pytest
import torch

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
