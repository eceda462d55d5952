"""The time that nothing can save: operations and bytes of a step against what the machine does.

The machine's rates are measured beside the decodings, in the same rounds: a large matrix product
and a large copy. A step's floor is the time of its matrix products at that rate, or of reading its
weights once at that bandwidth, whichever is longer, for transformer and head each. Activations,
norms, the softmax and Python count as nothing, which is why it is a floor.
Shape suffixes: B batch, L length, N masked rows, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from ..models import DreamModel
from ..models.experts import experts_of
from ..models.linear import multiply
from ..models.lm_head import read_head

# Sides of the square product, and bytes of the copy: large enough for the device to be busy.
PRODUCT = {"cpu": 2048, "cuda": 8192}
COPIED = 2**28
WAYS = ("up", "down")  # of the matrices of an MLP


@dataclass
class Work:
    """What forwards compute: positions in the transformer, rows in the head.

    `experts`: how many of all layers some position went through.
    """

    positions: float = 0
    rows: float = 0
    experts: float = 0

    def per(self, forwards: int) -> Work:
        return Work(self.positions / forwards, self.rows / forwards, self.experts / forwards)


@dataclass(frozen=True)
class Part:
    """Operations and bytes of the transformer or the head in a step, and the floor they make."""

    flop: float
    bytes: float
    floor_ms: float


@contextmanager
def counted(model: DreamModel) -> Iterator[Work]:
    """Counts what forwards inside of the block compute; CUDA graphs hide from it."""
    work = Work()

    def positions(_layer: nn.Module, given: tuple[Tensor, ...]) -> None:
        work.positions += given[0].shape[:-1].numel()

    def rows(_head: nn.Module, given: tuple[Tensor, ...]) -> None:
        work.rows += given[0].shape[:-1].numel()

    def experts(_experts: nn.Module, given: tuple[Tensor, ...]) -> None:
        _, chosen_TK, _ = given
        work.experts += chosen_TK.unique().numel()

    hooks = [
        model.model.layers[0].register_forward_pre_hook(positions),
        model.lm_head.register_forward_pre_hook(rows),
        *(e.register_forward_pre_hook(experts) for e in experts_of(model.model.layers)),
    ]
    try:
        yield work
    finally:
        for hook in hooks:
            hook.remove()


def probes(model: DreamModel, canvas_BL: Tensor, rows: int, k: int) -> dict[str, Callable]:
    """What is timed beside the decodings: the machine, the transformer alone, the head alone."""
    device, dtype = model.device, model.dtype
    side = _side(device)
    a, b = torch.randn(2, side, side, device=device).to(dtype)
    source = torch.ones(COPIED, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    hidden_ND = torch.randn(rows, model.config.hidden_size, device=device).to(dtype)
    vocabulary = model.config.vocab_size

    @torch.no_grad()
    def transformer() -> None:
        model.model(input_ids=canvas_BL, use_cache=False)

    return {
        "product": lambda: multiply(a, b),
        "copy": lambda: target.copy_(source),
        "transformer": transformer,
        "head": lambda: read_head(model.lm_head, hidden_ND, vocabulary, k),
    }


def machine(product_ms: float, copy_ms: float, device: torch.device) -> dict[str, float]:
    """Operations and bytes a second, from the times of the probes."""
    return {
        "flop_per_s": 2 * _side(device) ** 3 / product_ms * 1000,
        "bytes_per_s": 2 * COPIED / copy_ms * 1000,  # read and written
    }


def _side(device: torch.device) -> int:
    return PRODUCT.get(device.type, PRODUCT["cpu"])


def products_of(
    model: DreamModel, rows: int, dtype: torch.dtype
) -> tuple[dict[str, Callable[[], object]], int]:
    """Products of so many rows with either matrix of the model's MLP, in a dtype; FLOP of each."""
    width, inner = model.config.hidden_size, model.config.intermediate_size
    found: dict[str, Callable[[], object]] = {}
    for way, (inputs, outputs) in zip(WAYS, ((width, inner), (inner, width)), strict=True):
        input_NK = torch.ones(rows, inputs, device=model.device, dtype=dtype)
        weight_FK = torch.ones(outputs, inputs, device=model.device, dtype=dtype)
        found[way] = torch.no_grad()(partial(multiply, input_NK, weight_FK))
    return found, 2 * rows * width * inner


def parts(
    model: DreamModel,
    work: Work,
    length: int,
    machine: Mapping[str, float],
    rates: Mapping[str, float] | None = None,
) -> dict[str, Part]:
    """Floor of the transformer and of the head in a step that computes `work`.

    Args:
        length: positions that each computed one attends to.
        rates: operations a second of either part, where they are known for its number of rows.
    """
    config = model.config
    width = model.model.layers[0].self_attn.head_dim
    queries, keys = config.num_attention_heads * width, config.num_key_value_heads * width
    attention = config.hidden_size * (2 * queries + 2 * keys) + 2 * length * queries
    mlps = 3 * config.hidden_size * sum(config.feed_forward_widths)
    routers = config.hidden_size * config.num_experts * len(experts_of(model.model.layers))
    layers = config.num_hidden_layers * attention + mlps + routers
    flop = {
        "transformer": 2 * work.positions * layers,
        "head": 2 * work.rows * config.hidden_size * config.vocab_size,
    }
    size = {"transformer": _bytes_read(model, work), "head": _bytes(model.lm_head)}
    found = {}
    for name in flop:
        rate = (rates or {}).get(name, machine["flop_per_s"])
        seconds = max(flop[name] / rate, size[name] / machine["bytes_per_s"])
        found[name] = Part(flop[name], size[name], 1000 * seconds)
    return found


def _bytes_read(model: DreamModel, work: Work) -> float:
    """Of the layers' weights in a step, and of experts those that a position goes through."""
    experts = experts_of(model.model.layers)
    whole, stored = _bytes(model.model.layers), len(experts) * model.config.num_experts
    if not stored:
        return whole
    return whole - sum(map(_bytes, experts)) * (1 - work.experts / stored)


def _bytes(module: nn.Module) -> int:
    tensors = [*module.parameters(), *module.buffers()]
    return sum(x.numel() * x.element_size() for x in tensors)
