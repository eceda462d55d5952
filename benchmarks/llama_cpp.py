"""Our step beside that of llama.cpp's diffusion program, on the same model.

    python benchmarks/llama_cpp.py --binary llama-diffusion-cli --model MODEL --out DIR

MODEL is one whose network llama.cpp has a diffusion for (Dream, LLaDA). It is exported as a GGUF
file for each type that is compared, and the program reads it with as many positions, steps and
threads as we take. Both order positions by entropy; the program takes the likeliest token of each
(`--top-k 1`), which is the least that it can do. It puts the prompt into the model's chat template,
so it has a few masks less than we do. The two run in turns, after a run of each that does not
count: milliseconds a step, theirs as it prints them (all of the step, its sampling included, and
neither loading nor the prompt's tokens). Ratios are of the same turn.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

import softmask
from softmask.bench.benchmark import SOFT
from softmask.config import SamplingConfig, SoftMaskConfig
from softmask.decoding.generation import Generation
from softmask.hub.gguf_export import export_gguf
from softmask.reporting.measure import is_emulated, pair_ratios, summary, timed
from softmask.reporting.result_folder import claim, write
from softmask.reporting.tables import light_table

# How we load the model, and what llama.cpp reads for it: dtype, quantize, type of the file.
WAYS: dict[str, tuple[str | None, str | None, str]] = {
    "float32": ("float32", None, "f32"),
    "bfloat16": ("bfloat16", None, "bf16"),
    "int8": (None, "int8", "q8_0"),
    "int4": (None, "int4", "q8_0"),
}
# As examples/diffusion/diffusion.cpp prints it at the end of a text.
TIMES = re.compile(r"total time: ([\d.]+)ms, time per step: ([\d.]+)ms, sampling time per step: ")
ENTROPY = "1"  # of --diffusion-algorithm
EPS = "0.001"  # of Dream's schedule, as ours
PROMPT = "Once upon a time there was a little dog who lived in a big house near the sea."


def theirs(binary: str, file: Path, args: argparse.Namespace) -> float:
    """Milliseconds a step of one text by the program.

    Raises:
        ValueError: it failed, or printed no time.
    """
    size, threads = str(args.length), str(args.threads)
    command = [
        *(binary, "-m", str(file), "-p", PROMPT, "-t", threads, "-tb", threads),
        *("-c", size, "-b", size, "-ub", size, "--temp", "0", "--top-k", "1"),
        *("--diffusion-steps", str(args.steps), "--diffusion-eps", EPS),
        *("--diffusion-algorithm", ENTROPY),
    ]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    said = done.stdout + done.stderr
    if done.returncode:
        last = (said.strip().splitlines() or ["nothing"])[-1]
        raise ValueError(f"{binary} ended with code {done.returncode}; it last said: {last}")
    found = TIMES.search(said)
    if found is None:
        raise ValueError(f"{binary} printed no time per step: is it llama.cpp's diffusion CLI?")
    return float(found[2])


def ours(checkpoint: softmask.Checkpoint, args: argparse.Namespace, *, soft: bool) -> float:
    """Milliseconds a step of one text by this package, without a cache."""
    ids = checkpoint.tokenizer(PROMPT)["input_ids"]
    run = Generation(
        checkpoint,
        [ids],
        max_new_tokens=args.length - len(ids),
        sampling=SamplingConfig(steps=args.steps, alg="entropy", eps=float(EPS)),
        soft_mask=SoftMaskConfig(**SOFT) if soft else False,
        seed=0,
    )
    forwards = []
    seconds = timed(lambda: forwards.extend(run.completions()), checkpoint.model.device)
    return 1000 * seconds / forwards[0].forwards


def measure(way: str, file: Path, args: argparse.Namespace) -> dict[str, Any]:
    """The turns of one way of loading."""
    dtype, quantize, kind = WAYS[way]
    checkpoint = softmask.load(args.model, device="cpu", dtype=dtype, quantize=quantize)
    ms: dict[str, list[float]] = {"llama.cpp": [], "plain": [], "soft": []}
    for turn in range(args.repeat + 1):  # the first warms up
        found = {
            "llama.cpp": theirs(args.binary, file, args),
            "plain": ours(checkpoint, args, soft=False),
            "soft": ours(checkpoint, args, soft=True),
        }
        for name, value in found.items() if turn else ():
            ms[name].append(value)
    ratios = {name: pair_ratios(ms["llama.cpp"], ms[name]) for name in ("plain", "soft")}
    return {
        "file": kind,
        "ms_per_step": {name: summary(values) for name, values in ms.items()},
        "theirs_over_ours": ratios,
        "raw_ms": ms,
    }


def main() -> None:
    """Compares every way that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--binary", required=True, help="llama.cpp's llama-diffusion-cli")
    parser.add_argument("--model", help="folder or Hub id; default: the bundled model")
    parser.add_argument("--ways", nargs="+", choices=WAYS, help="default: all, but emulated ones")
    parser.add_argument("--length", type=int, default=256, help="positions of a text (256)")
    parser.add_argument("--steps", type=int, default=8, help="steps of a text (8)")
    parser.add_argument("--threads", type=int, default=2, help="of both (2)")
    parser.add_argument("--repeat", type=int, default=5, help="turns (5)")
    parser.add_argument("--out", type=Path, help="folder of the result")
    args = parser.parse_args()
    if shutil.which(args.binary) is None:
        parser.error(f"there is no program {args.binary}: build llama.cpp's llama-diffusion-cli")
    if args.out is not None:
        claim(args.out)
    torch.set_num_threads(args.threads)
    emulated = is_emulated(torch.bfloat16, torch.device("cpu"))
    ways = args.ways or [way for way in WAYS if not (emulated and way == "bfloat16")]
    table = light_table(
        f"ms a step, {args.length} positions, {args.steps} steps, {args.threads} threads; "
        f"median of {args.repeat} turns (least to most)"
    )
    for column in (
        "ours",
        "theirs",
        "llama.cpp",
        "plain",
        "theirs / ours",
        "soft",
        "theirs / ours",
    ):
        table.add_column(column, justify="left" if column in ("ours", "theirs") else "right")
    found = {}
    with tempfile.TemporaryDirectory() as place:
        for way in ways:
            file = Path(place) / f"{WAYS[way][2]}.gguf"
            try:
                if not file.exists():
                    export_gguf(file, args.model, kind=WAYS[way][2])
                row = found[way] = measure(way, file, args)
            except ValueError as error:
                parser.error(str(error))
            ms, ratios = row["ms_per_step"], row["theirs_over_ours"]
            shown = [_spread(ms["llama.cpp"])]
            for name in ("plain", "soft"):
                shown += [_spread(ms[name]), f"{ratios[name]['median']:.2f}"]
            table.add_row(way, row["file"], *shown)
    Console().print(table)
    if args.out is not None:
        settings = {name: getattr(args, name) for name in ("length", "steps", "threads", "repeat")}
        command = ["python", *sys.argv]
        write(args.out, command, {"settings": settings, "ways": found}, [table])


def _spread(value: dict[str, float]) -> str:
    return f"{value['median']:.0f} ({value['min']:.0f} to {value['max']:.0f})"


if __name__ == "__main__":
    main()
