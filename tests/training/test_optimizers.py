"""Muon and AdamW as one optimizer: what it saves is laid out as torch's own, and loads again."""

from __future__ import annotations

import copy

import torch
from tiny import tiny_model
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

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
