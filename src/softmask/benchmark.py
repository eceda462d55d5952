"""How fast, and in how much memory: `softmask bench`.

    softmask bench                             the bundled model
    softmask bench --hidden 512 --layers 8 --heads 8 --vocabulary 151936 --threads 2

Times plain and soft-masked decoding in turns within one process, so that a busy machine slows
both, and reads each one's peak memory in a process of its own. People read the table; the last
line is JSON for scripts.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from .config import SamplingConfig, SoftMaskConfig
from .hub import choose_device, choose_dtype, load
from .modeling import DreamConfig, DreamModel
from .sampler import Rules, denoise

MODES = ("plain", "soft")
# Strong enough that a random model's flat distributions are really mixed in.
SOFT = {"scale": 0.8, "offset": -3.0, "steepness": 1.0}


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
    parser.add_argument("--repeat", type=int, default=5, help="runs of each mode (default 5)")
    parser.add_argument("--alg", default="entropy", help="unmasking rule (default entropy)")
    parser.add_argument("--temperature", type=float, default=0.0, help="sampling temperature (0)")
    parser.add_argument("--top-p", type=float, default=None, help="nucleus (default: off)")
    parser.add_argument("--k", type=int, default=3, help="soft-mask tokens mixed in (default 3)")
    parser.add_argument("--device", default=None, help="cpu, cuda, mps (default: the best)")
    parser.add_argument("--dtype", default=None, help="float32, bfloat16 (default: by device)")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads (default: all)")
    parser.add_argument("--only", choices=MODES, help=argparse.SUPPRESS)


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


def runner(args: argparse.Namespace) -> Callable[[str], tuple[float, int]]:
    """A function that decodes once in a mode and returns (seconds, forwards)."""
    model = _model(args)
    mask_id = model.config.mask_token_id
    generator = torch.Generator().manual_seed(1)
    shape = (args.batch, args.prompt_tokens)
    prompt = torch.randint(0, min(mask_id, model.config.vocab_size - 1), shape, generator=generator)
    canvas = torch.nn.functional.pad(prompt, (0, args.new_tokens), value=mask_id).to(model.device)
    sampling = SamplingConfig(
        steps=args.steps, alg=args.alg, temperature=args.temperature, top_p=args.top_p
    )
    soft = SoftMaskConfig(k=args.k, **SOFT)

    def once(mode: str) -> tuple[float, int]:
        started = time.perf_counter()
        steps = denoise(
            model,
            canvas,
            sampling,
            soft_mask=soft if mode == "soft" else None,
            rules=Rules(suppressed=(mask_id,)),
        )
        for step in steps:
            last = step
        if model.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started, last.forwards

    return once


def peak_mb(device: str) -> float:
    """Largest memory of this process so far: allocated on the GPU, else resident."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status")
    if status.exists():
        # Not getrusage: on Linux a child's ru_maxrss starts at what its parent had reached.
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # bytes on macOS


def provenance() -> dict[str, Any]:
    """What a result's folder says of its origin: the commit of this code, and what it ran on."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "commit": _git("rev-parse", "HEAD"),
        "changed_since": _git("status", "--porcelain", "--untracked-files=no", "--", "."),
        "environment": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "machine": platform.processor() or platform.machine(),
            "gpu": gpu,
            "threads": torch.get_num_threads(),
        },
    }


def _git(*words: str) -> str | None:
    """What git says of this file's repository; None where it is in none, as when installed."""
    here = Path(__file__)
    if shutil.which("git") is None:
        return None
    tracked = ["ls-files", "--error-unmatch", here.name]
    for command in (tracked, list(words)):
        done = subprocess.run(["git", "-C", here.parent, *command], capture_output=True, text=True)
        if done.returncode:
            return None
    return done.stdout.strip()


def _peak_of(mode: str, argv: list[str]) -> float:
    child = subprocess.run(
        [sys.executable, "-m", "softmask.benchmark", *argv, "--only", mode],
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(child.stdout.splitlines()[-1])["peak_mb"]


def summary(values: list[float]) -> dict[str, float]:
    """Minimum, median and maximum."""
    points = {"min": min(values), "median": statistics.median(values), "max": max(values)}
    return {key: round(value, 4) for key, value in points.items()}


def run(args: argparse.Namespace, argv: list[str]) -> int:
    """Runs `softmask bench` with parsed arguments; `argv` repeats them for the children."""
    for name, value in vars(args).items():  # every whole number is a count
        if isinstance(value, int) and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1")
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    device = choose_device(args.device).type
    once = runner(args)
    if args.only:
        once(args.only)
        print(json.dumps({"peak_mb": round(peak_mb(device), 1)}))
        return 0
    for mode in MODES:
        once(mode)  # warm-up
    milliseconds: dict[str, list[float]] = {mode: [] for mode in MODES}
    forwards = {}
    for _ in range(args.repeat):
        for mode in MODES:
            seconds, forwards[mode] = once(mode)
            milliseconds[mode].append(1000 * seconds / forwards[mode])
    peaks = {mode: _peak_of(mode, argv) for mode in MODES}
    ratios = [
        soft / plain
        for soft, plain in zip(milliseconds["soft"], milliseconds["plain"], strict=True)
    ]
    result = {"soft_over_plain": summary(ratios), "threads": torch.get_num_threads()}
    table = Table(title=f"{args.prompt_tokens} + {args.new_tokens} tokens, batch {args.batch}")
    for column in ("decoding", "ms per step [min..max]", "tokens/s", "forwards", "peak MB"):
        table.add_column(column, justify="left" if column == "decoding" else "right")
    for mode in MODES:
        ms = summary(milliseconds[mode])
        speed = args.batch * args.new_tokens / (ms["median"] * forwards[mode] / 1000)
        result[mode] = {
            "ms_per_step": ms,
            "tokens_per_second": round(speed, 2),
            "forwards": forwards[mode],
            "peak_mb": peaks[mode],
        }
        spread = f"{ms['median']:.1f} [{ms['min']:.1f}..{ms['max']:.1f}]"
        table.add_row(mode, spread, f"{speed:.1f}", str(forwards[mode]), f"{peaks[mode]:.0f}")
    Console().print(table)
    print(json.dumps(result | {"settings": {k: v for k, v in vars(args).items() if v is not None}}))
    return 0


def main(argv: list[str] | None = None) -> int:
    """Entry of `python -m softmask.benchmark`."""
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(prog="softmask bench", description=__doc__.split("\n")[0])
    add_arguments(parser)
    return run(parser.parse_args(argv), argv)


if __name__ == "__main__":
    sys.exit(main())
