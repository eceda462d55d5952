"""Muon on devices without bfloat16."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ..reporting.measure import is_emulated


class Muon(torch.optim.Muon):
    """torch's, which orthogonalises in bfloat16; in float32 where a device emulates that.

    There bfloat16's products took most of an update. Which dtype it was is kept with the state, so
    that a run that goes on does what it did. Steps have AdamW's size ("match_rms_adamw").
    """

    def __init__(self, matrices: Iterable[Tensor], lr: float, weight_decay: float) -> None:
        super().__init__(matrices, lr, weight_decay, adjust_lr_fn="match_rms_adamw")

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            if "in_float32" not in group:
                devices = {p.device for p in group["params"]}
                group["in_float32"] = any(is_emulated(torch.bfloat16, d) for d in devices)
        if not any(group["in_float32"] for group in self.param_groups):
            super().step()
            return
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)

    def _update(self, parameter: Tensor, group: dict[str, Any]) -> None:
        """What `torch.optim.Muon` does to a parameter."""
        state, gradient, momentum = self.state[parameter], parameter.grad, group["momentum"]
        assert gradient is not None
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        buffer = state["momentum_buffer"]
        buffer.lerp_(gradient, 1 - momentum)
        update = orthogonal(
            gradient.lerp(buffer, momentum) if group["nesterov"] else buffer,
            group["ns_coefficients"],
            group["ns_steps"],
            group["eps"],
        )
        rate = float(group["lr"])
        parameter.mul_(1 - rate * group["weight_decay"])
        parameter.add_(update, alpha=-0.2 * rate * math.sqrt(max(parameter.shape)))


def orthogonal(
    matrix_NM: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float
) -> Tensor:
    """A matrix with its singular values brought near 1, (N, M), in the matrix's own dtype.

    The quintic Newton-Schulz iteration of Jordan et al., "Muon: An optimizer for hidden layers".
    """
    a, b, c = coefficients
    flat = matrix_NM.shape[0] > matrix_NM.shape[1]
    x = matrix_NM.T if flat else matrix_NM
    x = x / x.norm().clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if flat else x
