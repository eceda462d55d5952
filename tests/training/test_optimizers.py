"""Muon and AdamW as one optimizer: what it saves is laid out as torch's own, and loads again."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny import tiny_model
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

from softmask.training import muon
from softmask.training.config import TrainConfig
from softmask.training.optimizers import Chain, make_optimizer


def trained(steps: int):
    """A model and its chained optimizer after some updates."""
    model = tiny_model()
    optimizer = make_optimizer(model, TrainConfig(optimizer="muon"))
    assert isinstance(optimizer, Chain)
    for group in optimizer.param_groups:
        group["lr"] = 1e-2
    update(model, optimizer, steps)
    return model, optimizer


def update(model, optimizer, steps: int) -> None:
    ids = torch.arange(12).view(1, 12)
    for _ in range(steps):
        optimizer.zero_grad()
        model(ids).logits.square().mean().backward()
        optimizer.step()


def test_what_saves_sharded_checkpoints_finds_every_parameters_state_by_name() -> None:
    model, optimizer = trained(1)
    saved = get_optimizer_state_dict(model, optimizer)
    assert set(saved) == {"state", "param_groups"}
    assert set(saved["state"]) == {name for name, _ in model.named_parameters()}


def test_a_loaded_chain_goes_on_exactly_as_the_saved_one() -> None:
    model, optimizer = trained(2)
    # A copy, as a file is one: torch hands out the tensors themselves.
    state = copy.deepcopy(optimizer.state_dict())
    other, again = trained(1)
    other.load_state_dict(model.state_dict())
    again.load_state_dict(state)
    update(model, optimizer, 2)
    update(other, again, 2)
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("shape", [(24, 40), (40, 24)])
def test_muon_steps_as_torchs_does_where_bfloat16_is_emulated(shape, monkeypatch) -> None:
    monkeypatch.setattr(muon, "is_emulated", lambda *_: True)
    own = nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(0)))
    theirs = nn.Parameter(own.detach().clone())
    settings = {"weight_decay": 0.1, "adjust_lr_fn": "match_rms_adamw"}
    optimizers = muon.Muon([own], 0.1, 0.1), torch.optim.Muon([theirs], 0.1, **settings)
    for seed in range(1, 4):
        own.grad = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        theirs.grad = own.grad.clone()
        before = theirs.detach().clone()
        for optimizer in optimizers:
            optimizer.step()
        step = theirs - before
        assert (own - before - step).norm() < 0.05 * step.norm()  # bfloat16's rounding
        theirs.data.copy_(own)


def test_a_run_that_goes_on_orthogonalises_in_the_dtype_that_it_began_with(monkeypatch) -> None:
    probed = []
    monkeypatch.setattr(muon, "is_emulated", lambda *_: probed.append(1) or len(probed) == 1)
    _, optimizer = trained(1)
    _, again = trained(1)
    assert [o.optimizers[0].param_groups[0]["in_float32"] for o in (optimizer, again)] == [
        True,
        False,
    ]
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert again.optimizers[0].param_groups[0]["in_float32"]
