"""CUDA graphs of the packed forward: a step's thousand kernels as one launch.

A small model, or a block of 32 tokens of a large one, is done before Python has launched the next
kernel. A graph is recorded per shape: the lines' places and lengths, and how many tokens a position
superposes. Embedding and mixing of soft tokens lie inside of it; what changes from step to step is
copied into its buffers. The first steps of a shape run as they are, so that shapes which come and
go are not recorded at all.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..models import DreamModel
from ..models.packing import Layout
from ..soft_mask import SoftTokens

Replay = Callable[[], Tensor]

# A shape is recorded when it comes for the third time: recording costs several steps.
RECORD_AT = 3
# Graphs that are kept, the least used one dropped first. They share one pool of memory.
MOST = 32


def suits_graphs(model: DreamModel) -> bool:
    """Whether this model's forward can be recorded: on one CUDA device, not quantised, dense.

    Kernels of quantised layers, and loops over experts, may look at values on the host.
    """
    devices = {parameter.device for parameter in model.parameters()}
    quantised = getattr(model, "is_quantized", False) or hasattr(model, "hf_quantizer")
    plain = not quantised and not model.config.num_experts
    return len(devices) == 1 and devices.pop().type == "cuda" and plain


class Graphs:
    """`model.hidden`, recorded where a shape comes again.

    What it returns is overwritten by the next call.
    """

    def __init__(self, model: DreamModel, record: Callable[[Replay, Any], Replay] | None = None):
        self.model = model
        self._record = record or record_graph
        self._seen: Counter[object] = Counter()
        self._graphs: OrderedDict[object, _Recorded] = OrderedDict()
        self._pool: Any = None

    def __call__(self, tokens: Tensor | SoftTokens, layout: Layout) -> Tensor:
        """(T, D), as `model.hidden`."""
        key = (layout.shape, tuple(None if x is None else x.shape for x in _parts(tokens)))
        if key not in self._graphs:
            self._seen[key] += 1
            if self._seen[key] < RECORD_AT:
                return self.model.hidden(tokens, layout)
            if len(self._graphs) == MOST:
                self._graphs.popitem(last=False)
            if self._pool is None and torch.cuda.is_available():
                self._pool = torch.cuda.graph_pool_handle()
            self._graphs[key] = _Recorded(self.model, tokens, layout, self._record, self._pool)
        self._graphs.move_to_end(key)
        return self._graphs[key](tokens, layout)

    def __len__(self) -> int:
        return len(self._graphs)


class _Recorded:
    """A forward on buffers of its own."""

    def __init__(
        self,
        model: DreamModel,
        tokens: Tensor | SoftTokens,
        layout: Layout,
        record: Callable[[Replay, Any], Replay],
        pool: Any,
    ) -> None:
        self.parts = [None if x is None else x.clone() for x in _parts(tokens)]
        self.layout = layout.copy()
        own: Any = self.parts[0]
        if isinstance(tokens, SoftTokens):
            own = SoftTokens._make(self.parts)
        self.replay = record(lambda: model.hidden(own, self.layout), pool)

    def __call__(self, tokens: Tensor | SoftTokens, layout: Layout) -> Tensor:
        for own, given in zip(self.parts, _parts(tokens), strict=True):
            if own is not None and given is not None:
                own.copy_(given)
        self.layout.flat_T.copy_(layout.flat_T)
        self.layout.positions_T.copy_(layout.positions_T)
        return self.replay()


def _parts(tokens: Tensor | SoftTokens) -> tuple[Tensor | None, ...]:
    return tuple(tokens) if isinstance(tokens, SoftTokens) else (tokens,)


def record_graph(forward: Replay, pool: Any) -> Replay:
    """Records what `forward` launches; the result launches it again, on the same memory."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # allocates workspaces, picks kernels
        for _ in range(2):
            forward()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        output = forward()

    def replay() -> Tensor:
        graph.replay()
        return output

    return replay
