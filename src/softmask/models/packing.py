"""Sequences of different lengths in one forward, side by side and without padding.

A packed forward computes T positions of a flat canvas, window after window. Only attention depends
on where a window ends. A sequence attends to itself: to keys and values of this forward or, where
a store keeps them, to the store's. With a store only some of its positions need computing.
Shape suffixes: T computed positions, P positions of the flat canvas, H heads, S key/value heads,
D width of a head, N chosen positions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.glm4_moe.modeling_glm4_moe import Glm4MoeAttention
from transformers.models.glm4_moe.modeling_glm4_moe import (
    apply_rotary_pos_emb as rotate_in_part,
)
from transformers.models.qwen2.modeling_qwen2 import Qwen2Attention, apply_rotary_pos_emb
from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention, Qwen3RMSNorm


class Span(NamedTuple):
    """A window of a packed forward: how many positions of a sequence, and where that lies.

    Its positions see all `length` of the sequence. With `size` they are its last ones and lie in
    blocks of this size, of which the window has the last `first` positions of the first one; each
    sees its own block and those before.
    """

    queries: int
    start: int  # the sequence's first position on the flat canvas
    length: int
    first: int = 0
    size: int = 0

    @property
    def form(self) -> tuple[int, int, int, int]:
        """All but its place."""
        return self.queries, self.length, self.first, self.size

    def mask(self, device: torch.device) -> Tensor | None:
        """(queries, length) bool: who sees whom; None: all see all."""
        if not self.size:
            return None
        # Blocks behind the first one that a position lies in: none for those of the first.
        behind_Q = torch.arange(self.queries, device=device) - self.first
        blocks_Q = behind_Q.div(self.size, rounding_mode="floor").clamp_min(-1) + 1
        ends_Q = self.length - self.queries + self.first + blocks_Q * self.size
        return torch.arange(self.length, device=device) < ends_Q[:, None]


class Store(Protocol):
    """Keeps keys and values of the whole flat canvas, layer by layer."""

    def update(
        self, layer: int, flat_T: Tensor, keys_TSD: Tensor, values_TSD: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Takes in those of the positions `flat_T`; returns all, (P, S, D) each."""


class Layout:
    """What a packed forward computes.

    Args:
        flat_T: flat positions, window after window.
        positions_T: their places in their sequences, for the rotary embedding.
        previous_P: the flat position before each in its sequence; of the first, itself.
        spans: the windows, in the order of `flat_T`; without a store each is computed whole.
            Neighbours of like shape are attended in one call.
    """

    def __init__(
        self,
        flat_T: Tensor,
        positions_T: Tensor,
        previous_P: Tensor,
        spans: Sequence[Span],
        store: Store | None = None,
    ) -> None:
        self.flat_T, self.positions_T, self.store = flat_T, positions_T, store
        self.previous_P = previous_P
        self.computed_P = torch.zeros_like(previous_P)  # places among the computed positions
        self.computed_P[flat_T] = torch.arange(len(flat_T), device=flat_T.device)
        self.shape = tuple(spans)
        self.runs = _plan(spans, flat_T.device, stored=store is not None)

    def sources(self, rows_N: Tensor, *, shift: bool) -> Tensor:
        """Places among the computed positions that predict the flat positions `rows_N`."""
        return self.computed_P[self.previous_P[rows_N] if shift else rows_N]

    def copy(self) -> Layout:
        """The same windows, on memory of its own."""
        own = self.flat_T.clone(), self.positions_T.clone(), self.previous_P
        return Layout(*own, self.shape, self.store)

    def attend(
        self, layer: int, q_THD: Tensor, k_TSD: Tensor, v_TSD: Tensor, scale: float
    ) -> Tensor:
        """(T, H, D): every sequence attends to itself, those of like shape in one call."""
        keys, values = k_TSD, v_TSD
        if self.store is not None:
            flat_T = self.flat_T.to(k_TSD.device)
            keys, values = self.store.update(layer, flat_T, k_TSD, v_TSD)
        grouped = q_THD.shape[1] != keys.shape[1]
        read_q, read_k, read_v = _reader(q_THD), _reader(keys), _reader(values)
        parts = []
        for count, at, queries, start, stride, length, mask in self.runs:
            k, v = read_k(start, stride, count, length), read_v(start, stride, count, length)
            is_shared = grouped and mask is None
            if grouped and not is_shared:
                # Of CUDA's kernels none takes both a mask and shared keys, but one that is slow.
                heads = q_THD.shape[1] // k.shape[1]
                k, v = k.repeat_interleave(heads, dim=1), v.repeat_interleave(heads, dim=1)
            out = F.scaled_dot_product_attention(
                read_q(at, queries, count, queries),
                k,
                v,
                attn_mask=None if mask is None else mask.to(q_THD.device),
                scale=scale,
                enable_gqa=is_shared,
            )
            parts.append(out.transpose(1, 2).flatten(0, 1))
        return torch.cat(parts)


class _Run(NamedTuple):
    """Windows of like shape at equal distances, which one call attends: `sequences` of them.

    `at` and `start` are where the queries of the first and its keys begin, `stride` rows lie
    between the keys of two.
    """

    sequences: int
    at: int
    queries: int
    start: int
    stride: int
    length: int
    mask: Tensor | None


def _plan(spans: Sequence[Span], device: torch.device, *, stored: bool) -> list[_Run]:
    """The calls that attend these windows. Without a store keys are packed as queries are."""
    plan, at, mask_of = [], 0, _masks(spans, device)
    for run in _runs(spans, at_equal_distances=stored):
        queries, start, length, *_ = run[0]
        count, mask = len(run), mask_of(run[0])
        stride = run[1].start - start if count > 1 else length
        if not stored:
            start, stride = at, length
        plan.append(_Run(count, at, queries, start, stride, length, mask))
        at += count * queries
    return plan


def _masks(spans: Sequence[Span], device: torch.device) -> Callable[[Span], Tensor | None]:
    """The mask of each span, a view of that of the longest one of its kind.

    What differs is how much lies before the window, which all of it sees. A mask for each window
    of a long prompt would be a byte for every pair of its positions.
    """
    longest: dict[tuple[int, int, int], Span] = {}
    for span in spans:
        kind = span.queries, span.first, span.size
        longest[kind] = max(longest.get(kind, span), span, key=lambda one: one.length)
    masks = {kind: span.mask(device) for kind, span in longest.items()}

    def mask_of(span: Span) -> Tensor | None:
        kind = span.queries, span.first, span.size
        mask = masks[kind]
        return None if mask is None else mask[:, longest[kind].length - span.length :]

    return mask_of


def _runs(spans: Sequence[Span], *, at_equal_distances: bool) -> list[list[Span]]:
    """Consecutive windows of like shape; in a store, strides must reach all of a run."""
    runs: list[list[Span]] = []
    for span in spans:
        run = runs[-1] if runs else [span]
        like = span.form == run[0].form
        if like and at_equal_distances and len(run) > 1:
            like = span.start - run[-1].start == run[1].start - run[0].start
        if runs and like:
            run.append(span)
        else:
            runs.append([span])
    return runs


def _reader(x_XHD: Tensor) -> Callable[[int, int, int, int], Tensor]:
    """Reads sequences off rows: (count, H, length, D), views of `length` rows, `stride` rows apart.

    Many short sequences are bound by what Python does for each: strides are looked up once.
    """
    (row, head, one), (_, heads, width) = x_XHD.stride(), x_XHD.shape
    first, as_strided = x_XHD.storage_offset(), x_XHD.as_strided

    def read(start: int, stride: int, count: int, length: int) -> Tensor:
        size = (count, heads, length, width)
        return as_strided(size, (stride * row, head, row, one), first + start * row)

    return read


class PackedAttention(Qwen2Attention):
    """Qwen2's attention, which also takes packed windows (`layout`)."""

    _rotate = staticmethod(apply_rotary_pos_emb)

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        layout: Layout | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        if layout is None:
            return self._whole(
                hidden_states=hidden_states,
                position_embeddings=position_embeddings,
                attention_mask=attention_mask,
                **kwargs,
            )
        shape = (*hidden_states.shape[:-1], -1, self.head_dim)
        q_1THD, k_1TSD, v_1TSD = (
            project(hidden_states).view(shape)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        q_1THD, k_1TSD = self._normed(q_1THD, k_1TSD)
        q_1THD, k_1TSD = self._rotate(q_1THD, k_1TSD, *position_embeddings, unsqueeze_dim=2)
        out_THD = layout.attend(self.layer_idx, q_1THD[0], k_1TSD[0], v_1TSD[0], self.scaling)
        return self.o_proj(out_THD.reshape(*hidden_states.shape[:-1], -1)), None

    def _whole(self, **given: Any) -> tuple[Tensor, Tensor | None]:
        """Of rows of one length, by transformers."""
        return super().forward(**given)

    def _normed(self, q_1THD: Tensor, k_1TSD: Tensor) -> tuple[Tensor, Tensor]:
        return q_1THD, k_1TSD


class NormedAttention(PackedAttention):
    """With each head's queries and keys normalised, as in Qwen3."""

    q_norm: Qwen3RMSNorm
    k_norm: Qwen3RMSNorm

    def _whole(self, **given: Any) -> tuple[Tensor, Tensor | None]:
        attend: Any = Qwen3Attention.forward
        return attend(self, **given)

    def _normed(self, q_1THD: Tensor, k_1TSD: Tensor) -> tuple[Tensor, Tensor]:
        return self.q_norm(q_1THD), self.k_norm(k_1TSD)


class PartialAttention(NormedAttention):
    """With the front of each head alone rotated, as in GLM-4.5."""

    use_qk_norm = True  # which its own code asks for
    _rotate = staticmethod(rotate_in_part)

    def _whole(self, **given: Any) -> tuple[Tensor, Tensor | None]:
        attend: Any = Glm4MoeAttention.forward
        return attend(self, **given)


def make_packed(
    attention: Any, *, bias: bool, normed: bool, eps: float, partial: bool = False
) -> None:
    """Makes Qwen2's attention one that takes packed windows, of the variant that is asked for.

    In place: new modules would be initialised a second time, and move a seeded model on.
    """
    kind = PartialAttention if partial else NormedAttention
    attention.__class__ = kind if normed else PackedAttention
    # The mask functions read config.is_causal, the attention kernels the layer's own flag.
    attention.is_causal = False
    if not bias:
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
            projection.bias = None
    if normed:
        attention.q_norm, attention.k_norm = (
            Qwen3RMSNorm(attention.head_dim, eps=eps) for _ in ("queries", "keys")
        )
