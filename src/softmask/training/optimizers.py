"""Parameter groups, and Muon and AdamW behind one optimizer."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from ..soft_mask import SoftMask
from .config import TrainConfig
from .muon import Muon
from .schedule import TrainingSchedule


class Chain(Optimizer):
    """Several optimizers that step together; `param_groups` are all of theirs, in order.

    `Optimizer.__init__` is not called: there is no state of its own, and a scheduler needs only
    the groups and `step`.
    """

    def __init__(self, *optimizers: Optimizer) -> None:
        self.optimizers = optimizers
        self.defaults: dict[str, Any] = {}
        self._optimizer_step_pre_hooks: dict[int, Callable] = {}
        self._optimizer_step_post_hooks: dict[int, Callable] = {}

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    @property
    def state(self) -> dict[Any, Any]:  # type: ignore[override]
        return {k: v for optimizer in self.optimizers for k, v in optimizer.state.items()}

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for optimizer in self.optimizers:
            optimizer.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """In the layout of a single optimizer, which saving sharded checkpoints relies on."""
        state: dict[Any, Any] = {}
        groups: list[dict[str, Any]] = []
        for optimizer in self.optimizers:
            start = sum(len(group["params"]) for group in groups)
            own = optimizer.state_dict()
            state |= {start + number: values for number, values in own["state"].items()}
            for group in own["param_groups"]:
                groups.append({**group, "params": [start + n for n in group["params"]]})
        return {"state": state, "param_groups": groups}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        groups = iter(state["param_groups"])
        for optimizer in self.optimizers:
            own = list(islice(groups, len(optimizer.param_groups)))
            names = [name for group in own for name in group["params"]]
            values = {name: state["state"][name] for name in names if name in state["state"]}
            optimizer.load_state_dict({"state": values, "param_groups": own})


def make_optimizer(model: nn.Module, config: TrainConfig) -> Optimizer:
    """Muon or AdamW for the matrices inside the layers, AdamW for all else that is trained.

    Weight decay acts on matrices alone. The soft-mask parameters are the last group. Muon's step is
    scaled to AdamW's size, so that one learning rate serves both. All groups start with rate 1:
    `make_scheduler` multiplies.
    """
    trained = {id(p): (name, p) for name, p in model.named_parameters() if p.requires_grad}
    masks = [module for module in model.modules() if isinstance(module, SoftMask)]
    soft = [p for mask in masks for p in mask.parameters() if trained.pop(id(p), None)]
    matrices = [p for name, p in trained.values() if p.dim() == 2 and ".layers." in name]
    rest = [p for name, p in trained.values() if not (p.dim() == 2 and ".layers." in name)]
    decay = config.weight_decay
    groups = [
        {"params": [p for p in rest if p.dim() >= 2], "weight_decay": decay},
        {"params": [p for p in rest if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizers: list[Optimizer] = []
    if config.optimizer == "muon":
        # Muon takes matrices of the layers alone, as its authors do.
        optimizers.append(Muon(matrices, 1.0, decay))
    else:
        groups.insert(0, {"params": matrices, "weight_decay": decay})
    groups.append({"params": soft, "weight_decay": 0.0, "soft_mask": True})
    groups = [group for group in groups if group["params"]]
    if groups:
        optimizers.append(torch.optim.AdamW(groups, lr=1.0, betas=(0.9, config.beta2), eps=1e-8))
    return optimizers[0] if len(optimizers) == 1 else Chain(*optimizers)


def make_scheduler(
    optimizer: Optimizer, schedule: TrainingSchedule, soft_learning_rate: float
) -> LambdaLR:
    """The schedule's learning rate; that of the soft-mask group is in proportion to it.

    `soft_learning_rate` is what the group has where the schedule is at its highest.
    """

    def soft_rate(step: int) -> float:
        stage = schedule.at(step)
        return soft_learning_rate * stage.learning_rate_at(step) / stage.learning_rate

    groups = optimizer.param_groups
    return LambdaLR(
        optimizer, [soft_rate if "soft_mask" in g else schedule.learning_rate for g in groups]
    )
