"""How fast, and in how much memory: `softmask bench`.

    softmask bench                        the bundled model
    softmask bench --hidden 512 --threads 2 --twin --block-length 32 --cache dual --out DIR
    softmask bench frontier               what faster decoding costs in accuracy

Times all ways of decoding in turns within one process, so that a busy machine slows them alike,
beside the machine's own rates (`floor.py`), and reads each one's peak memory in a process of its
own. People read the tables; the last line is JSON for scripts.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from ..config import CACHES, SamplingConfig, SoftMaskConfig
from ..decoding.sampler import Rules, denoise
from ..hub.load import choose_device, choose_dtype, load
from ..models import DreamConfig, DreamModel
from ..reporting.measure import peak_mb, peak_of, summary, timed
from ..reporting.result_folder import claim, provenance, write
from .dense_twin import denoise_densely
from .roofline import Work, counted, probes
from .summary import MODES, PUBLISHED, Measured, block_wise, label, summarise, tables_of

__all__ = ["SOFT", "main", "peak_mb", "provenance", "summary"]

# Strong enough that a random model's flat distributions are really mixed in.
SOFT = {"scale": 0.8, "offset": -3.0, "steepness": 1.0}
BLOCK_STEPS = 8
BLOCK_OPTIONS = ("block_steps", "cache", "refresh_every", "refresh_window")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `softmask bench`."""
    parser.add_argument("--model", help="folder or Hub id; default: the bundled model")
    parser.add_argument("--hidden", type=int, help="time a random model of this width instead")
    parser.add_argument("--layers", type=int, default=8, help="its layers (default 8)")
    parser.add_argument("--heads", type=int, default=8, help="its attention heads (default 8)")
    parser.add_argument("--kv-heads", type=int, default=2, help="its key/value heads (default 2)")
    parser.add_argument("--intermediate", type=int, default=2688, help="its MLP width (2688)")
    parser.add_argument("--vocabulary", type=int, default=151_936, help="its vocabulary (151936)")
    parser.add_argument("--prompt-tokens", type=int, default=64, help="prompt length (default 64)")
    parser.add_argument("--new-tokens", type=int, default=192, help="masks to fill (default 192)")
    parser.add_argument("--batch", type=int, default=1, help="rows (default 1)")
    parser.add_argument("--steps", type=int, default=8, help="denoising steps a run (default 8)")
    parser.add_argument("--repeat", type=int, default=5, help="runs of each decoding (default 5)")
    parser.add_argument("--alg", default="entropy", help="unmasking rule (default entropy)")
    parser.add_argument("--temperature", type=float, default=0.0, help="sampling temperature (0)")
    parser.add_argument("--top-p", type=float, default=None, help="nucleus (default: off)")
    parser.add_argument("--k", type=int, default=3, help="soft-mask tokens mixed in (default 3)")
    parser.add_argument("--device", default=None, help="cpu, cuda, mps (default: the best)")
    parser.add_argument("--dtype", default=None, help="float32, bfloat16 (default: by device)")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads (default: all)")
    parser.add_argument("--twin", action="store_true", help="also the published computation: slow")
    parser.add_argument("--block-length", type=int, help="also block-wise, in blocks of this size")
    parser.add_argument("--block-steps", type=int, help=f"steps a block (default {BLOCK_STEPS})")
    parser.add_argument("--cache", choices=CACHES, help="also block-wise with this cache")
    parser.add_argument("--refresh-every", type=int, help="its refresh, in steps (default: none)")
    parser.add_argument("--refresh-window", type=int, help="tokens around the block (default: all)")
    parser.add_argument("--out", type=Path, help="write result.json and table.txt to this folder")
    parser.add_argument("--only", help=argparse.SUPPRESS)


@dataclass(frozen=True)
class Decoding:
    """One row of the table; `dense`: by the published computation."""

    sampling: SamplingConfig
    soft_mask: SoftMaskConfig | None
    dense: bool = False


def decodings(args: argparse.Namespace) -> dict[str, Decoding]:
    """What is timed, by name.

    Raises:
        ValueError: settings that contradict each other.
    """
    rules = {"alg": args.alg, "temperature": args.temperature, "top_p": args.top_p}
    soft = {"plain": None, "soft": SoftMaskConfig(k=args.k, **SOFT)}
    whole = SamplingConfig(steps=args.steps, **rules)
    found = {mode: Decoding(whole, mask) for mode, mask in soft.items()}
    if args.twin:
        if (args.alg, args.temperature, args.top_p) != ("entropy", 0.0, None):
            raise ValueError(
                "--twin knows alg entropy at temperature 0 alone: leave out other rules"
            )
        found |= {PUBLISHED + mode: Decoding(whole, mask, True) for mode, mask in soft.items()}
    if args.block_length is None:
        unused = [name for name in BLOCK_OPTIONS if getattr(args, name) is not None]
        if unused:
            raise ValueError(f"--{unused[0].replace('_', '-')} needs --block-length")
        return found
    blocks = -(-args.new_tokens // args.block_length)
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


def _model(args: argparse.Namespace) -> DreamModel:
    if args.hidden is None:
        return load(args.model, device=args.device, dtype=args.dtype).model
    if args.hidden % args.heads or args.heads % args.kv_heads:
        raise ValueError("--heads must divide --hidden, and --kv-heads must divide --heads")
    torch.manual_seed(0)
    config = DreamConfig(
        hidden_size=args.hidden,
        intermediate_size=args.intermediate,
        num_hidden_layers=args.layers,
        num_attention_heads=args.heads,
        num_key_value_heads=args.kv_heads,
        vocab_size=args.vocabulary,
        mask_token_id=args.vocabulary - 1,
        pad_token_id=None,
        max_position_embeddings=args.prompt_tokens + args.new_tokens,
    )
    device = choose_device(args.device)
    dtype = choose_dtype(args.dtype, device)
    dtype = torch.float32 if dtype == "auto" else dtype  # random weights have none of their own
    return DreamModel(config).eval().to(device=device, dtype=dtype)


class Bench:
    """A model, a canvas of prompt and masks, and the ways to decode it."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.decodings = args, decodings(args)
        self.model = _model(args)
        mask_id, size = self.model.config.mask_token_id, self.model.config.vocab_size
        generator = torch.Generator().manual_seed(1)
        shape = (args.batch, args.prompt_tokens)
        prompt = torch.randint(0, min(mask_id, size - 1), shape, generator=generator)
        canvas_BL = torch.nn.functional.pad(prompt, (0, args.new_tokens), value=mask_id)
        self.canvas_BL = canvas_BL.to(self.model.device)

    def steps(self, name: str, *, graphs: bool | None = None) -> Iterator[Any]:
        """The steps of one decoding, not yet run."""
        way = self.decodings[name]
        if way.dense:
            return denoise_densely(self.model, self.canvas_BL, way.sampling.steps, way.soft_mask)
        return denoise(
            self.model,
            self.canvas_BL,
            way.sampling,
            soft_mask=way.soft_mask,
            rules=Rules(suppressed=(self.model.config.mask_token_id,)),
            graphs=graphs,
        )

    def once(self, name: str) -> tuple[float, int]:
        """Decodes once; returns seconds and forwards."""
        last: deque[Any] = deque(maxlen=1)
        seconds = timed(lambda: last.extend(self.steps(name)), self.model.device)
        return seconds, last[0].forwards

    def warm_up(self, name: str) -> Work:
        """Decodes once, untimed, and counts what a forward computes; of the slow twin two steps."""
        with counted(self.model) as work:
            stop = 2 if self.decodings[name].dense else None
            graphs = False if self.model.device.type == "cuda" else None
            for step in islice(self.steps(name, graphs=graphs), stop):
                last = step
        return work.per(last.forwards)

    def measure(self, tick: Callable[[str], None]) -> Measured:
        """All decodings and the probes, in turns."""
        work = {}
        for name in self.decodings:
            tick(f"{label(name)}, warm-up")
            work[name] = self.warm_up(name)
        calls = probes(self.model, self.canvas_BL, round(work["soft"].rows), self.args.k)
        for call in calls.values():
            call()
        found = Measured({name: [] for name in (*self.decodings, *calls)}, work)
        for number in range(self.args.repeat):
            for name in self.decodings:
                tick(f"{label(name)}, {number + 1} of {self.args.repeat}")
                seconds, found.forwards[name] = self.once(name)
                found.ms[name].append(1000 * seconds / found.forwards[name])
            for name, call in calls.items():
                found.ms[name].append(1000 * timed(call, self.model.device))
        for mode in MODES:
            counts = {found.forwards[name] for name in block_wise(self.decodings, mode)}
            assert len(counts) <= 1, f"{mode}: a cache changed the number of forwards: {counts}"
        return found


def run(args: argparse.Namespace, argv: list[str]) -> int:
    """Runs `softmask bench` with parsed arguments; `argv` repeats them for the children."""
    for name, value in vars(args).items():  # every whole number is a count
        if type(value) is int and value < 1 and name != "refresh_window":
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1")
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    names = decodings(args)
    device = choose_device(args.device).type
    if args.only:
        Bench(args).once(args.only)
        print(json.dumps({"peak_mb": round(peak_mb(device), 1)}))
        return 0
    if args.out is not None:
        claim(args.out)
    console = Console()
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as progress:
        task = progress.add_task("loading", total=len(names) * (args.repeat + 2))

        def tick(what: str) -> None:
            progress.update(task, advance=1, description=what)

        bench = Bench(args)
        found = bench.measure(tick)
        for name in names:
            tick(f"{label(name)}, memory")
            found.peaks[name] = peak_of("softmask.bench.benchmark", [*argv, "--only", name])
    result = summarise(bench.model, args.batch, args.new_tokens, found)
    result["threads"] = torch.get_num_threads()
    settings = {k: str(v) if k == "out" else v for k, v in vars(args).items() if v is not None}
    tables = tables_of(
        result, f"{args.prompt_tokens} + {args.new_tokens} tokens, batch {args.batch}"
    )
    for table in tables:
        console.print(table)
    if args.out is not None:
        raw = {"settings": settings, "raw_ms": found.ms, "summary": result}
        write(args.out, ["softmask", "bench", *argv], raw, tables)
    print(json.dumps(result | {"settings": settings}))
    return 0


def main(argv: list[str] | None = None) -> int:
    """Entry of `softmask bench` and of `python -m softmask.bench.benchmark`."""
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["frontier"]:
        from .frontier import main as frontier

        return frontier(argv[1:])
    parser = argparse.ArgumentParser(
        prog="softmask bench",
        description=__doc__.split("\n")[0]
        + " `softmask bench frontier -h`: accuracy against speed.",
    )
    add_arguments(parser)
    return run(parser.parse_args(argv), argv)


if __name__ == "__main__":
    sys.exit(main())
