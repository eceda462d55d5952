"""How close decoding comes to the device's limits: Dream-7B's shape, random weights, one GPU.

    python benchmarks/gpu/decoding.py --out benchmarks/results/DATE_gpu_decoding
    python benchmarks/gpu/decoding.py --shape tiny --device cpu --prompt 16 --new 64    # a trial

Prompt 512 + 512 new, plain and soft-masked in turns:
    machine    the rate of a large matrix product, and the bandwidth of a copy, in this run
    whole      a step without cache, half of the new tokens decided: operations / time, as a share
               of the rate
    window     a step of a 32-token block with the dual cache: bytes of weights and cache / time, as
               a share of the bandwidth; also without CUDA graphs
    run        whole generations with the dual cache at 1, 2 and 4 tokens a forward
    dense      the published computation of a step, as far as memory allows
People read the table; the last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from shapes import FULL_LAYERS, SHAPES, random_dream

from softmask.bench import benchmark
from softmask.bench.dense_twin import denoise_densely
from softmask.config import SamplingConfig, SoftMaskConfig
from softmask.decoding.batch import Batch
from softmask.decoding.sequence import Rules
from softmask.models import DreamModel
from softmask.reporting.measure import summary
from softmask.reporting.result_folder import provenance
from softmask.reporting.tables import light_table

BLOCK = 32
SOFT = SoftMaskConfig(k=3, **benchmark.SOFT)
MODES = {"plain": None, "soft": SOFT}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", help="default: bfloat16 on a GPU, float32 on a CPU")
    parser.add_argument("--shape", default="7b", choices=SHAPES)
    parser.add_argument("--layers", type=int, default=FULL_LAYERS)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--new", type=int, default=512)
    parser.add_argument("--batches", default="1,8,32", help="rows of a batch")
    parser.add_argument("--whole-batches", default="1,8", help="of steps without cache")
    parser.add_argument("--per-forward", default="1,2,4", help="committed tokens of a run")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--out", type=Path, help="folder for result.json")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    device = torch.device(args.device)
    args.dtype = args.dtype or ("bfloat16" if device.type == "cuda" else "float32")
    model = random_dream(args.shape, args.layers, device, getattr(torch, args.dtype))
    bench = Bench(model, args)
    started = time.perf_counter()
    result: dict[str, Any] = {
        "command": " ".join(["python", *sys.argv]),
        **provenance(),
        "shape": SHAPES[args.shape].config | {"layers": args.layers, "dtype": args.dtype},
        "machine": bench.machine(),
        "whole": [bench.whole(int(b)) for b in args.whole_batches.split(",")],
        "window": [bench.window(int(b)) for b in args.batches.split(",")],
    }
    result["run"] = [
        bench.run(int(batch), int(tokens))
        for batch in args.batches.split(",")
        for tokens in args.per_forward.split(",")
    ]
    result["dense"] = [bench.dense(int(b)) for b in args.whole_batches.split(",")]
    result["seconds"] = round(time.perf_counter() - started, 1)
    show(result)
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


class Bench:
    """One model, timed in several ways."""

    def __init__(self, model: DreamModel, args: argparse.Namespace) -> None:
        self.model, self.args = model, args
        self.device, self.dtype = model.device, model.dtype
        self.mask_id = model.config.mask_token_id
        self.rate = self.bandwidth = math.nan

    def machine(self) -> dict[str, float]:
        """The rate of a matrix product (FLOP/s) and the bandwidth of a copy (bytes/s)."""
        size = 8192 if self.device.type == "cuda" else 1024
        a, b = torch.randn(2, size, size, device=self.device).to(self.dtype)
        self.rate = 2 * size**3 / statistics.median(self.seconds(lambda: a @ b, 10))
        source = torch.empty(size * size * (16 if size > 1024 else 1), device=self.device)
        target = torch.empty_like(source)
        copy = statistics.median(self.seconds(lambda: target.copy_(source), 10))
        self.bandwidth = 2 * source.numel() * source.element_size() / copy
        return {"flop_per_s": self.rate, "copy_bytes_per_s": self.bandwidth}

    def seconds(self, call: Callable[[], object], count: int) -> list[float]:
        """Each of `count` calls, after two to warm up."""
        times = []
        for _ in range(count + 2):
            self.synchronise()
            started = time.perf_counter()
            call()
            self.synchronise()
            times.append(time.perf_counter() - started)
        return times[2:]

    def synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def batch(self, rows: int, config: SamplingConfig, mode: str, *, decided: int = 0, **kwargs):
        """Rows of prompt and masks, the first `decided` of which are decided already."""
        length = self.args.prompt + self.args.new
        made = Batch(self.model, rows * length, cached=config.cache != "none", **kwargs)
        generator = torch.Generator().manual_seed(1)
        for row in range(rows):
            ids = torch.randint(0, self.mask_id, (length,), generator=generator)
            ids[self.args.prompt + decided :] = self.mask_id
            rules = Rules(suppressed=(self.mask_id,))
            made.add(row * length, ids.to(self.device), config, soft_mask=MODES[mode], rules=rules)
        return made

    def step_times(self, batch: Batch, groups: int, steps: int) -> list[float]:
        """Seconds of a step, in groups, as steps may run ahead of the device within each."""
        times = []
        for _ in range(groups):
            self.synchronise()
            started = time.perf_counter()
            for _ in range(steps):
                batch.step()
            self.synchronise()
            times.append((time.perf_counter() - started) / steps)
        return times

    def whole(self, rows: int) -> dict[str, Any]:
        """A step without cache in the middle of a generation: one token a forward."""
        found: dict[str, Any] = {"batch": rows}
        half = self.args.new // 2
        times: dict[str, list[float]] = {mode: [] for mode in MODES}
        # Steps that all commit one token: a threshold that nothing passes would look each time.
        config = SamplingConfig(steps=half)
        batches = {mode: self.batch(rows, config, mode, decided=half) for mode in MODES}
        for made in batches.values():
            self.step_times(made, 1, 4)
        for _ in range(self.args.repeat):
            for mode, made in batches.items():
                times[mode] += self.step_times(made, 1, 2)
        length = self.args.prompt + self.args.new
        flop = rows * (self._flop(length, length) + half * self._head_flop())
        for mode, values in times.items():
            found[mode] = self._summary(values) | {
                "share_of_matrix_rate": flop / statistics.median(values) / self.rate,
                "peak_gb": self.peak(lambda m=mode: self.step_times(batches[m], 1, 1)),
            }
        found["soft_over_plain"] = _ratio(times)
        return found

    def window(self, rows: int) -> dict[str, Any]:
        """A step of a block with the dual cache."""
        found: dict[str, Any] = {"batch": rows}
        config = SamplingConfig(steps=self.args.new, block_length=BLOCK, cache="dual")
        ways = {mode: self.batch(rows, config, mode) for mode in MODES}
        ways["plain, no graphs"] = self.batch(rows, config, "plain", graphs=False)
        times: dict[str, list[float]] = {way: [] for way in ways}
        for made in ways.values():
            self.step_times(made, 1, 6)  # the whole text, then windows until they are recorded
        groups = min(self.args.repeat, (BLOCK - 7) // 4)
        for _ in range(groups):
            for way, made in ways.items():
                times[way] += self.step_times(made, 1, 4)
        moved = self._weight_bytes() + rows * self._cache_bytes()
        for way, values in times.items():
            share = moved / statistics.median(values) / self.bandwidth
            found[way] = self._summary(values) | {"share_of_copy_bandwidth": share}
        found["soft_over_plain"] = _ratio(times)
        return found

    def run(self, rows: int, tokens: int) -> dict[str, Any]:
        """Whole generations with the dual cache, `tokens` committed a forward."""
        steps = self.args.new // tokens
        config = SamplingConfig(steps=steps, block_length=BLOCK, cache="dual")
        found: dict[str, Any] = {"batch": rows, "tokens_per_forward": tokens}
        for mode in MODES:
            made = self.batch(rows, config, mode)

            def generate(made: Batch = made) -> None:
                while not all(one.is_done for one in made.sequences):
                    made.step()

            self.synchronise()
            started = time.perf_counter()
            peak = self.peak(generate)
            seconds = time.perf_counter() - started
            found[mode] = {
                "seconds": seconds,
                "tokens_per_s": rows * self.args.new / seconds,
                "forwards": made.forwards,
                "peak_gb": peak,
            }
        found["soft_over_plain"] = found["soft"]["seconds"] / found["plain"]["seconds"]
        return found

    def dense(self, rows: int) -> dict[str, Any]:
        """The published computation of a step; or that it does not fit."""
        found: dict[str, Any] = {"batch": rows}
        length = self.args.prompt + self.args.new
        canvas = torch.full((rows, length), self.mask_id, device=self.device)
        canvas[:, : self.args.prompt + self.args.new // 2] = 5
        for mode, soft in MODES.items():
            times: list[float] = []

            def steps(soft: Any = soft, times: list[float] = times) -> None:
                self.synchronise()
                started = time.perf_counter()
                for _ in denoise_densely(self.model, canvas, 4, soft):
                    self.synchronise()
                    times.append(time.perf_counter() - started)
                    started = time.perf_counter()

            try:
                peak = self.peak(steps)
            except torch.OutOfMemoryError:
                found[mode] = {"out_of_memory": True}
                continue
            found[mode] = self._summary(times[1:]) | {"peak_gb": peak}
        return found

    def peak(self, call: Callable[[], object]) -> float | None:
        """GB that were allocated at most during a call; None without a GPU."""
        if self.device.type != "cuda":
            call()
            return None
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() / 1e9

    def _flop(self, computed: int, keys: int) -> float:
        """Operations of the layers for `computed` positions that attend to `keys`."""
        config = self.model.config
        weights = sum(p.numel() for p in self.model.model.layers.parameters() if p.dim() == 2)
        attention = 4 * computed * keys * config.hidden_size * config.num_hidden_layers
        return 2 * weights * computed + attention

    def _head_flop(self) -> float:
        return 2 * self.model.lm_head.weight.numel()

    def _weight_bytes(self) -> int:
        read = [*self.model.model.layers.parameters(), self.model.lm_head.weight]
        return sum(p.numel() * p.element_size() for p in read)

    def _cache_bytes(self) -> int:
        config = self.model.config
        width = config.hidden_size // config.num_attention_heads * config.num_key_value_heads
        each = 2 * config.num_hidden_layers * width * self.dtype.itemsize
        return (self.args.prompt + self.args.new) * each

    def _summary(self, seconds: list[float]) -> dict[str, Any]:
        values = [1000 * s for s in seconds]
        return {"ms": summary(values), "raw_ms": [round(v, 4) for v in values]}


def _ratio(times: dict[str, list[float]]) -> dict[str, float]:
    return summary([s / p for s, p in zip(times["soft"], times["plain"], strict=True)])


def show(result: dict[str, Any]) -> None:
    """The table for people."""
    shape, gpu = result["shape"], result["environment"]["gpu"] or "no GPU"
    name = f"width {shape['hidden_size']}, {shape['layers']} layers, {shape['dtype']}, {gpu}"
    table = light_table(name)
    columns = ("what", "batch", "ms a step", "of plain", "of the limit", "tokens/s", "peak GB")
    for column in columns:
        table.add_column(column, justify="left" if column == "what" else "right")
    for kind in ("whole", "window", "run", "dense"):
        for row in result[kind]:
            for mode, values in row.items():
                if isinstance(values, dict) and mode != "soft_over_plain":
                    name = f"{kind}, {mode}"
                    if "tokens_per_forward" in row:
                        name += f", {row['tokens_per_forward']} a forward"
                    table.add_row(name, str(row["batch"]), *_cells(values, row["plain"]))
    Console().print(table)


def _cells(values: dict[str, Any], plain: dict[str, Any]) -> list[str]:
    share = values.get("share_of_matrix_rate", values.get("share_of_copy_bandwidth"))
    fits = "out_of_memory" not in values
    return [
        f"{_ms(values):.2f}" if fits else "out of memory",
        f"{_ms(values) / _ms(plain):.3f}" if fits and "out_of_memory" not in plain else "",
        "" if share is None else f"{100 * share:.0f} %",
        "" if "tokens_per_s" not in values else f"{values['tokens_per_s']:.1f}",
        "" if values.get("peak_gb") is None else f"{values['peak_gb']:.1f}",
    ]


def _ms(values: dict[str, Any]) -> float:
    if "ms" in values:
        return values["ms"]["median"]
    return 1000 * values["seconds"] / values["forwards"]


if __name__ == "__main__":
    with torch.no_grad():
        main()
