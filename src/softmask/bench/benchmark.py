"""How fast each way of decoding is, and in how much memory.

All ways are timed in turns within one process, so that a busy machine slows them alike, beside the
machine's own rates (`roofline.py`). `softmask bench` runs it.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch

from ..config import FEEDBACK_MIXTURES, SamplingConfig, SoftMaskConfig
from ..decoding.sampler import Rules, denoise
from ..families.dream import DREAM
from ..families.family import Family
from ..families.registry import FAMILIES, by_name
from ..hub.load import choose_device, choose_dtype, load
from ..models import DreamConfig, DreamModel
from ..reporting.measure import timed
from ..reporting.progress import Step
from .choices import BLOCK_STEPS
from .dense_twin import denoise_densely
from .roofline import Work, counted, probes
from .summary import MIXTURE, MODES, NETWORK, PUBLISHED, Measured, block_wise, label

# Strong enough that a random model's flat distributions are really mixed in.
SOFT: dict[str, Any] = {"scale": 0.8, "offset": -3.0, "steepness": 1.0}
# Rounds where the clock decides how many: timing takes a quarter of a minute, loading and memory
# about as long.
SECONDS, FEWEST, MOST = 15.0, 3, 15
BLOCK_OPTIONS = ("block_steps", "cache", "refresh_every", "refresh_window")


@dataclass(frozen=True)
class Decoding:
    """One row of the table; `dense`: by the published computation; `family`: whose network."""

    sampling: SamplingConfig
    soft_mask: SoftMaskConfig | None
    family: Family | None = None
    dense: bool = False


def decodings(args: argparse.Namespace) -> dict[str, Decoding]:
    """What is timed, by name.

    Raises:
        ValueError: settings that contradict each other.
    """
    rules = {"alg": args.alg, "temperature": args.temperature, "top_p": args.top_p}
    soft = {"plain": None, "soft": SoftMaskConfig(k=args.soft_mask_k, **SOFT)}
    whole = SamplingConfig(steps=args.steps, **rules)
    found = {mode: Decoding(whole, mask) for mode, mask in soft.items()}
    if args.mixtures:
        for name in FEEDBACK_MIXTURES:
            mask = SoftMaskConfig(k=args.soft_mask_k, mixture=name, **SOFT)
            if mask != soft["soft"]:
                found[f"{MIXTURE}{name.replace('_', '-')}"] = Decoding(whole, mask)
    if args.families:
        if args.hidden is None:
            raise ValueError("--families times random models of one size: give --hidden too")
        for family in networks():
            sampling = _suiting(whole, family, args.max_new_tokens)
            found[f"{NETWORK}{family.name}"] = Decoding(sampling, None, family)
    if args.twin:
        if (args.alg, args.temperature, args.top_p) != ("entropy", 0.0, None):
            raise ValueError(
                "--twin knows alg entropy at temperature 0 alone: leave out other rules"
            )
        found |= {
            PUBLISHED + mode: Decoding(whole, mask, dense=True) for mode, mask in soft.items()
        }
    if args.block_length is None:
        unused = [name for name in BLOCK_OPTIONS if getattr(args, name) is not None]
        if unused:
            raise ValueError(f"--{unused[0].replace('_', '-')} needs --block-length")
        return found

    blocks = -(-args.max_new_tokens // args.block_length)
    rules |= {
        "steps": blocks * (args.block_steps or BLOCK_STEPS),
        "block_length": args.block_length,
    }
    sampling = SamplingConfig(**rules)
    found |= {f"{mode}_blocks": Decoding(sampling, mask) for mode, mask in soft.items()}
    cached = SamplingConfig(
        **rules,
        cache=args.cache or "none",
        refresh_every=args.refresh_every,
        refresh_window=args.refresh_window,
    )
    if cached.cache != "none":
        found |= {f"{mode}_{cached.cache}": Decoding(cached, mask) for mode, mask in soft.items()}
    return found


def networks() -> list[Family]:
    """The first family of each network there is beside Dream's."""
    found = {json.dumps(DREAM.network): DREAM}
    for family in FAMILIES.values():
        found.setdefault(json.dumps(family.network, sort_keys=True), family)
    return [family for family in found.values() if family is not DREAM]


def _suiting(sampling: SamplingConfig, family: Family, masks: int) -> SamplingConfig:
    """For a block-causal network: a step a block at least, and what it keeps of earlier ones."""
    size = family.network.get("block_size")
    if size is None:
        return sampling
    # One block more where the prompt ends within one, and one for tokens that lead a block.
    steps = max(sampling.steps, 2 * (masks // size + 1))
    return replace(sampling, steps=steps, cache="exact")


def _model(args: argparse.Namespace, family: Family | None = None) -> DreamModel:
    if args.hidden is None:
        return load(args.model, family=args.family, device=args.device, dtype=args.dtype).model
    if family is None:
        family = by_name(args.family or DREAM.name)
    if args.hidden % args.heads or args.heads % args.kv_heads:
        raise ValueError("--heads must divide --hidden, and --kv-heads must divide --heads")
    if args.hidden // args.heads % 2:
        raise ValueError("--hidden must be an even number of times --heads: halves are rotated")
    if args.vocabulary < 2:
        raise ValueError("--vocabulary must be at least 2: the mask, and what is not the mask")
    torch.manual_seed(0)
    experts = family.network.get("num_experts_per_tok", 0)
    experts += family.network.get("n_shared_experts", 1)
    config = DreamConfig(
        hidden_size=args.hidden,
        intermediate_size=args.intermediate,
        num_hidden_layers=args.layers,
        num_attention_heads=args.heads,
        num_key_value_heads=args.kv_heads,
        vocab_size=args.vocabulary,
        mask_token_id=args.vocabulary - 1,
        pad_token_id=None,
        max_position_embeddings=args.prompt_tokens + args.max_new_tokens,
        family=family.name,
        # A token's experts, the shared ones included, are together about as wide.
        moe_intermediate_size=max(8, args.intermediate // experts // 8 * 8),
        **family.network,
    )
    device = choose_device(args.device)
    dtype = choose_dtype(args.dtype, device)
    dtype = torch.float32 if dtype == "auto" else dtype  # random weights have none of their own
    return DreamModel(config).eval().to(device=device, dtype=dtype)


class Bench:
    """A model, a canvas of prompt and masks, and the ways to decode it."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.decodings = args, decodings(args)
        if args.only is not None:
            # Its peak of memory is read: nothing else may lie there.
            self.decodings = {args.only: self.decodings[args.only]}
        self.networks = {
            name: _model(args, way.family)
            for name, way in self.decodings.items()
            if way.family is not None
        }
        others = len(self.networks) < len(self.decodings)
        self.model = _model(args) if others else next(iter(self.networks.values()))
        mask_id, size = self.model.mask_id, self.model.config.vocab_size
        generator = torch.Generator().manual_seed(1)
        shape = (args.batch, args.prompt_tokens)
        prompt = torch.randint(0, min(mask_id, size - 1), shape, generator=generator)
        canvas_BL = torch.nn.functional.pad(prompt, (0, args.max_new_tokens), value=mask_id)
        self.canvas_BL = canvas_BL.to(self.model.device)

    def steps(self, name: str, *, graphs: bool | None = None) -> Iterator[Any]:
        """The steps of one decoding, not yet run."""
        way = self.decodings[name]
        if way.dense:
            return denoise_densely(self.model, self.canvas_BL, way.sampling.steps, way.soft_mask)
        return denoise(
            self.networks.get(name, self.model),
            self.canvas_BL,
            way.sampling,
            soft_mask=way.soft_mask,
            rules=Rules(suppressed=(self.model.mask_id,)),
            graphs=graphs,
        )

    def once(self, name: str) -> tuple[float, int]:
        """Decodes once; returns seconds and forwards."""
        last: deque[Any] = deque(maxlen=1)
        seconds = timed(lambda: last.extend(self.steps(name)), self.model.device)
        return seconds, last[0].forwards

    def warm_up(self, name: str) -> Work:
        """Decodes once, untimed, and counts what a forward computes; of the slow twin two steps."""
        with counted(self.networks.get(name, self.model)) as work:
            stop = 2 if self.decodings[name].dense else None
            graphs = False if self.model.device.type == "cuda" else None
            for step in islice(self.steps(name, graphs=graphs), stop):
                last = step
        return work.per(last.forwards)

    def measure(self, shown: Step) -> Measured:
        """All decodings and the probes, in turns: as often as is asked for, or by the clock.

        Args:
            shown: is told what is done, and of each run that is done.
        """
        work = {}
        asked = self.args.repeat
        for name in self.decodings:
            shown.update(f"{label(name)}: warm-up")
            work[name] = self.warm_up(name)
        calls = probes(self.model, self.canvas_BL, round(work["soft"].rows), self.args.soft_mask_k)
        for call in calls.values():
            call()
        found = Measured({name: [] for name in (*self.decodings, *calls)}, work)
        begun, rounds = time.monotonic(), 0
        while rounds < (asked or FEWEST) or (
            asked is None and rounds < MOST and time.monotonic() - begun < SECONDS
        ):
            expected = asked or _rounds_expected(time.monotonic() - begun, rounds)
            if expected:
                # The runs that read memory are counted too.
                shown.update(total=len(self.decodings) * (expected + 1))
            rounds += 1
            for name in self.decodings:
                last = f" of {asked}" if asked else ""
                shown.update(f"{label(name)}: round {rounds}{last}")
                seconds, found.forwards[name] = self.once(name)
                found.ms[name].append(1000 * seconds / found.forwards[name])
                shown.advance()
            for name, call in calls.items():
                found.ms[name].append(1000 * timed(call, self.model.device))
        for mode in MODES:
            counts = {found.forwards[name] for name in block_wise(self.decodings, mode)}
            assert len(counts) <= 1, f"{mode}: a cache changed the number of forwards: {counts}"
        return found


def _rounds_expected(seconds: float, rounds: int) -> int | None:
    """How many rounds the clock will allow, by those that are done; None: none is."""
    if rounds == 0 or seconds == 0:
        return None
    return max(rounds + 1, FEWEST, min(MOST, math.ceil(SECONDS * rounds / seconds)))
