"""Matrix products in fp32 on a CPU by oneDNN, which torch keeps for other dtypes.

torch multiplies fp32 matrices with MKL, which on other vendors' CPUs runs at less than half of the
machine's rate: 218 against 496 GFLOP/s on two cores of an EPYC for 256 rows, 59 against 185 for 17
rows of a head. oneDNN comes with the same wheel; its sums are in fp32 too, in another order.
It compiles a product for each number of rows and keeps a thousand of them, 0.6 MB each; here 32.
Shape suffixes: M rows, N outputs, K inputs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

# Read at the first product. Making one anew takes 0.2 ms; a step has about ten kinds.
KEPT = 32
for cache in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
    os.environ.setdefault(cache, str(KEPT))

# Not their subclasses: sharded tensors, fake ones, quantised ones.
DENSE = (Tensor, nn.Parameter)


def suits(input_MK: Tensor, weight_NK: Tensor) -> bool:
    """Whether `product` takes these: dense fp32 matrices on a CPU, outside of a compiler."""
    same: bool = input_MK.dtype == weight_NK.dtype == torch.float32
    return (
        same
        and input_MK.numel() > 0
        and input_MK.device.type == weight_NK.device.type == "cpu"
        and type(input_MK) in DENSE
        and type(weight_NK) in DENSE
        and bool(torch.backends.mkldnn.enabled)
        and torch.backends.mkldnn.is_available()
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


@contextmanager
def torchs_own_products() -> Iterator[None]:
    """Within: torch's own products, for comparisons; not for other threads."""
    mkldnn: Any = torch.backends.mkldnn
    before = mkldnn.enabled
    mkldnn.enabled = False
    try:
        yield
    finally:
        mkldnn.enabled = before


def product(input_MK: Tensor, weight_NK: Tensor, bias_N: Tensor | None = None) -> Tensor:
    """(M, N) input @ weight.T + bias without a gradient, of what `suits`; more dimensions in front
    are kept."""
    # Private, but what torch.compile itself emits for a linear layer with frozen weights.
    return torch.ops.mkldnn._linear_pointwise(input_MK, weight_NK, bias_N, "none", [], "")


def multiply(input_MK: Tensor, weight_NK: Tensor) -> Tensor:
    """(M, N) input @ weight.T without a gradient, by the faster product where there is one."""
    if suits(input_MK, weight_NK):
        return product(input_MK, weight_NK)
    return F.linear(input_MK, weight_NK)


class Product(torch.autograd.Function):
    """`product` with its gradients, which are products too."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight_NK: Tensor, bias_N: Tensor | None) -> Tensor:
        input_MK = input.reshape(-1, input.shape[-1])
        ctx.save_for_backward(input_MK, weight_NK)
        ctx.shape = input.shape
        output_MN = product(input_MK, weight_NK, bias_N)
        # A view that a Function makes could not be changed in place, and FSDP2 warns of any.
        return torch.ops.aten._unsafe_view(output_MN, [*input.shape[:-1], len(weight_NK)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        input_MK, weight_NK = ctx.saved_tensors
        needs_input, needs_weight, needs_bias = ctx.needs_input_grad
        grad_MN = grad.reshape(-1, grad.shape[-1])
        return (
            product(grad_MN, weight_NK.t()).view(ctx.shape) if needs_input else None,
            _outer(grad_MN, input_MK) if needs_weight else None,
            grad_MN.sum(0) if needs_bias else None,
        )


def _outer(left_MN: Tensor, right_MK: Tensor) -> Tensor:
    """(N, K) left.T @ right. The wider one as the weight: up to 1.5 times the rate."""
    if left_MN.shape[1] >= right_MK.shape[1]:
        return product(right_MK.t(), left_MN.t()).t()
    return product(left_MN.t(), right_MK.t())


class Linear(nn.Linear):
    """nn.Linear that takes the faster product where there is one."""

    def forward(self, input: Tensor) -> Tensor:
        """(..., N) of (..., K)."""
        if not suits(input, self.weight):
            return F.linear(input, self.weight, self.bias)
        inputs = (input, self.weight, self.bias)
        if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs):
            return Product.apply(*inputs)
        return product(*inputs)


# Layers that are a plain product: nothing quantised, adapted or wrapped.
PLAIN = (nn.Linear, Linear)


def is_plain(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether it is one of these and no subclass."""
    return type(module) in PLAIN


def use_faster_products(model: nn.Module) -> None:
    """Makes every plain linear layer of the model a `Linear`, in place."""
    for module in model.modules():
        if type(module) is nn.Linear:
            # A new module would be initialised a second time, and move a seeded model on.
            module.__class__ = Linear
