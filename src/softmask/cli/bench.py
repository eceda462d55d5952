"""softmask bench: ms a step, tokens/s and memory, plain and soft-masked.

Times every way of decoding in turns; each way's peak memory is read in a process of its own. It
answers within a minute: rounds go on for a quarter of one, three of them at least, unless --repeat
says how many. With --json the last line is for scripts.

    softmask bench                     the bundled model
    softmask bench --shape dream-7b    a published shape, random weights
    softmask bench growth              cost and memory by length and batch
    softmask bench frontier            what faster decoding costs in accuracy
    softmask bench --hidden 512 --twin --block-length 32 --cache dual --out DIR
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from ..bench.choices import BLOCK_STEPS, MODES
from ..reporting.clocks import CLOCKS
from ..reporting.progress import progress
from ..reporting.words import count
from ..sampling import CACHES
from .options import add_hidden, choices_of, counts, new_parser, path_of, words

LAYERS = 8  # of a random model of --hidden


def make_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = new_parser("bench", __doc__)
    parser.add_argument("--model", help="folder or Hub id; default: the bundled model")
    parser.add_argument(
        "--family", help="of models whose files do not say; with --hidden: whose network"
    )
    parser.add_argument("--hidden", type=int, help="time a random model of this width instead")
    parser.add_argument(
        "--shape", help="time a published shape instead: dream-7b, llada-8b, qwen-0.5b"
    )
    parser.add_argument(
        "--layers", type=int, help="its layers (default 8; of a shape 2, the others projected)"
    )
    parser.add_argument("--heads", type=int, default=8, help="its attention heads (default 8)")
    parser.add_argument("--kv-heads", type=int, default=2, help="its key/value heads (default 2)")
    parser.add_argument("--intermediate", type=int, default=2688, help="its MLP width (2688)")
    parser.add_argument("--vocabulary", type=int, default=151_936, help="its vocabulary (151936)")
    parser.add_argument("--prompt-tokens", type=int, default=64, help="prompt length (default 64)")
    parser.add_argument(
        "--max-new-tokens", type=int, default=192, help="masks to fill (default 192)"
    )
    add_hidden(parser, "--new-tokens", dest="max_new_tokens", type=int, default=192)
    parser.add_argument(
        "--tokens", type=counts, help="with --shape: lengths of texts, half decided (default 256)"
    )
    parser.add_argument(
        "--batch", type=counts, default=(1,), help="rows (default 1; with --shape 1,4,16)"
    )
    parser.add_argument(
        "--modes",
        type=choices_of(MODES),
        default=MODES,
        help=f"with --shape: feedback (default {','.join(MODES)})",
    )
    parser.add_argument("--steps", type=int, default=8, help="denoising steps a run (default 8)")
    parser.add_argument(
        "--clock",
        choices=CLOCKS,
        default="wall",
        help="with --shape: wall, or processor, on a machine that is not quiet",
    )
    parser.add_argument("--repeat", type=int, help="runs of each decoding (default: by the clock)")
    parser.add_argument("--alg", default="entropy", help="unmasking rule (default entropy)")
    parser.add_argument("--temperature", type=float, default=0.0, help="sampling temperature (0)")
    parser.add_argument("--top-p", type=float, default=None, help="nucleus (default: off)")
    parser.add_argument(
        "--soft-mask-k", type=int, default=3, help="tokens that soft-masking mixes in (default 3)"
    )
    add_hidden(parser, "--k", dest="soft_mask_k", type=int, default=3)
    parser.add_argument("--device", default=None, help="cpu, cuda, mps (default: the best)")
    parser.add_argument(
        "--dtype",
        type=words,
        help="float32, bfloat16 (default: by device); with --shape several, int8 and int4 too",
    )
    parser.add_argument("--threads", type=int, default=None, help="CPU threads (default: all)")
    parser.add_argument("--twin", action="store_true", help="also the published computation: slow")
    parser.add_argument(
        "--mixtures",
        action="store_true",
        help="also soft-masking's mixtures that are not published",
    )
    parser.add_argument(
        "--families", action="store_true", help="with --hidden: also the networks of other families"
    )
    parser.add_argument("--block-length", type=int, help="also block-wise, in blocks of this size")
    parser.add_argument("--block-steps", type=int, help=f"steps a block (default {BLOCK_STEPS})")
    parser.add_argument(
        "--cache",
        type=choices_of(CACHES),
        help="also block-wise with this cache (with --shape: with these, default all)",
    )
    parser.add_argument("--refresh-every", type=int, help="its refresh, in steps (default: none)")
    parser.add_argument("--refresh-window", type=int, help="tokens around the block (default: all)")
    parser.add_argument("--out", type=path_of, help="write result.json, table.txt to this folder")
    parser.add_argument("--json", action="store_true", help="the last line is JSON, for scripts")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    return parser


def run(args: argparse.Namespace, argv: list[str]) -> int:
    """Runs the command with parsed arguments; `argv` repeats them for the children."""
    import torch
    from rich.console import Console

    from ..bench.benchmark import Bench, decodings
    from ..bench.summary import label, summarise, tables_of
    from ..hub.load import choose_device
    from ..reporting.measure import peak_mb, peak_of
    from ..reporting.result_folder import claim, write
    from . import bench_shape

    for name, value in vars(args).items():  # every whole number is a count
        if type(value) is int and value < 1 and name != "refresh_window":
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1")
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    if args.shape is not None:
        return bench_shape.run(args, make_parser(), argv)
    _take_single(args)
    names = decodings(args)
    device = choose_device(args.device).type
    if args.only:
        Bench(args).once(args.only)
        print(json.dumps({"peak_mb": round(peak_mb(device), 1)}))
        return 0
    if args.out is not None:
        claim(args.out)
    console = Console()
    with progress("loading the model", unit="runs") as shown:
        bench = Bench(args)
        found = bench.measure(shown)
        for name in names:
            shown.update(f"{label(name)}: peak memory")
            found.peaks[name] = peak_of("softmask", [*argv, "--only", name])
            shown.advance()
    result = summarise(bench.model, args.batch, args.max_new_tokens, found)
    result["threads"] = torch.get_num_threads()
    settings = {k: str(v) if k == "out" else v for k, v in vars(args).items() if v is not None}
    settings["repeat"] = rounds = len(found.ms["plain"])
    tables = tables_of(result, _title(args, bench.model, rounds))
    for table in tables:
        console.print(table)
    if args.out is not None:
        raw = {"settings": settings, "raw_ms": found.ms, "summary": result}
        write(args.out, ["softmask", *argv], raw, tables)
    if args.json:
        print(json.dumps(result | {"settings": settings}))
    return 0


def _take_single(args: argparse.Namespace) -> None:
    """One value of what a shape takes several of; and what it leaves open."""
    if args.tokens is not None or args.modes != MODES:
        raise ValueError("--tokens and --modes need --shape: give --prompt-tokens otherwise")
    if args.clock != "wall":
        raise ValueError("--clock needs --shape, or softmask bench growth: leave it out")
    for name in ("batch", "dtype", "cache"):
        value = getattr(args, name)
        if value is not None and len(value) > 1:
            raise ValueError(f"--{name} takes several values with --shape alone: give one")
        setattr(args, name, None if value is None else value[0])
    if args.hidden is None:
        parser = make_parser()
        for name in ("layers", "heads", "kv_heads", "intermediate", "vocabulary"):
            if getattr(args, name) != parser.get_default(name):
                raise ValueError(f"--{name.replace('_', '-')} is of a random model: give --hidden")
    elif args.model is not None:
        raise ValueError("--hidden times a random model: leave out --model")
    args.layers = LAYERS if args.layers is None else args.layers


def _title(args: argparse.Namespace, model: Any, rounds: int) -> str:
    """Which settings applied, in two lines."""
    what = "a random model" if args.hidden else args.model or "the bundled model"
    where = f"{model.device.type}, {str(model.dtype).removeprefix('torch.')}"
    if model.device.type == "cpu":
        import torch

        where += f", {count(torch.get_num_threads(), 'thread')}"
    how = f"{args.alg}, temperature {args.temperature:g}, k {args.soft_mask_k}"
    return (
        f"{what}: {where}\n{args.prompt_tokens} + {args.max_new_tokens} tokens, batch "
        f"{args.batch}, {args.steps} steps, {how}; median of {count(rounds, 'round')}"
    )
