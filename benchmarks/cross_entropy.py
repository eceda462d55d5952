"""Head and cross-entropy of chosen rows, three ways: time, peak memory and gradients.

    python benchmarks/cross_entropy.py benchmarks/results/DATE_cross_entropy

"plain" holds all logits; "torch" is torch's own chunked `linear_cross_entropy` (2.13 and later)
with default options, "torch_rows" the same with as many rows in a chunk as "chunked", the loop in
DreamModel: checkpointed chunks of rows through the head's module.
Each is timed in turns within one process, forward and backward, with weights of its own for every
row's loss; peak memory is read in a fresh process each. "torch" is too slow on a CPU (chunks of 2
rows) for more than one run of one case.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from softmask.models import DreamConfig, DreamModel, modeling_dream
from softmask.reporting.measure import summary
from softmask.reporting.result_folder import provenance

WAYS = ("plain", "torch_rows", "chunked")
ROWS = (512, 1400)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# What is trained: the head too, or, as with adapters, only what lies below it.
TRAINED = ("hidden_and_head", "hidden")
WIDTH, VOCABULARY, THREADS = 1024, 151_936, 2


class Case:
    """A head with its weights, hidden states, true ids and weights of the rows."""

    def __init__(self, rows: int, dtype: str, trained: str) -> None:
        torch.manual_seed(0)
        config = DreamConfig(
            hidden_size=WIDTH,
            vocab_size=VOCABULARY,
            intermediate_size=WIDTH,
            num_hidden_layers=1,
            num_attention_heads=8,
            num_key_value_heads=8,
            mask_token_id=0,
            pad_token_id=None,
            tie_word_embeddings=True,  # one table in memory
        )
        self.model = DreamModel(config).to(DTYPES[dtype])
        self.head = self.model.lm_head.weight.requires_grad_(trained == "hidden_and_head")
        self.hidden_ND = torch.randn(rows, WIDTH).to(DTYPES[dtype]).requires_grad_()
        self.labels_N = torch.randint(VOCABULARY, (rows,))
        self.weights_N = torch.rand(rows)
        self.autocast = dtype == "bf16"

    def losses(self, way: str) -> Tensor:
        """(N,) cross-entropy of every row."""
        if way == "chunked":
            return self.model._losses(self.hidden_ND, self.labels_N, kept=0, attached=False)[0]
        if way == "plain":
            logits_NV = self.model.lm_head(self.hidden_ND).float()
            return F.cross_entropy(logits_NV, self.labels_N, reduction="none")
        count = self.model._chunks(len(self.labels_N))
        rows = None if way == "torch" else math.ceil(len(self.labels_N) / count)
        options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=rows)
        return F.linear_cross_entropy(
            self.hidden_ND, self.head, self.labels_N, reduction="none", options=options
        )

    def run(self, way: str) -> dict[str, float]:
        """Seconds of forward and backward, by the clock and of the CPUs; see `gradients`."""
        self.hidden_ND.grad = self.head.grad = None
        started, worked = time.perf_counter(), time.process_time()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
            losses_N = self.losses(way)
        (losses_N * self.weights_N).sum().backward()
        clock, cpu = time.perf_counter() - started, time.process_time() - worked
        return {"clock": round(clock, 3), "cpu": round(cpu, 3)}

    def gradients(self) -> dict[str, Tensor]:
        found = {"hidden": self.hidden_ND.grad, "head": self.head.grad}
        return {name: g.float().clone() for name, g in found.items() if g is not None}


def timings(case: Case, repeat: int) -> dict[str, list[dict[str, float]]]:
    """Seconds of every way, in turns."""
    case.run("plain")  # warms up
    seconds: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for _, way in itertools.product(range(repeat), WAYS):
        seconds[way].append(case.run(way))
    return seconds


def differences(dtype: str, trained: str) -> dict[str, dict[str, float]]:
    """Largest difference from the plain fp32 gradient, relative to its largest entry."""
    case = Case(ROWS[0], dtype, trained)
    exact = Case(ROWS[0], dtype, trained)
    exact.model.float()
    exact.head = exact.model.lm_head.weight
    exact.hidden_ND = exact.hidden_ND.detach().float().requires_grad_()
    exact.autocast = False
    exact.run("plain")
    expected = exact.gradients()
    found: dict[str, dict[str, float]] = {}
    for way in WAYS:
        case.run(way)
        found[way] = {
            name: ((g - expected[name]).abs().max() / expected[name].abs().max()).item()
            for name, g in case.gradients().items()
        }
    return found


def status_mb(field: str) -> float:
    """A field of this process's status: VmHWM, its peak, or VmRSS."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def peak_above_start(case: Case, way: str) -> dict[str, float]:
    """MB by which a run's peak exceeds what head and hidden states take, and its seconds."""
    Path("/proc/self/clear_refs").write_text(
        "5", encoding="utf-8"
    )  # the peak starts anew: not the weights' making
    before = status_mb("VmRSS")
    seconds = case.run(way)
    return {"peak_mb": round(status_mb("VmHWM") - before, 1), **seconds}


def in_child(*argv: str) -> dict[str, float]:
    """Peak memory in MB, and seconds, of one run in a process of its own."""
    child = subprocess.run(
        [sys.executable, __file__, "--only", *argv], capture_output=True, text=True, check=True
    )
    return json.loads(child.stdout.splitlines()[-1])


def measure(names: list[str], repeat: int) -> dict:
    """One case: raw seconds, medians, ratios to "plain" of the same turn, and peak memory."""
    rows, dtype, trained = names
    seconds = timings(Case(int(rows), dtype, trained), repeat)
    result = {
        "seconds": seconds,
        "peak_mb": {way: in_child(way, *names)["peak_mb"] for way in WAYS},
    }
    for kind, way in itertools.product(("clock", "cpu"), WAYS):
        own, plain = ([turn[kind] for turn in seconds[w]] for w in (way, "plain"))
        result.setdefault(f"median_{kind}", {})[way] = statistics.median(own)
        ratios = [a / b for a, b in zip(own, plain, strict=True)]
        result.setdefault(f"{kind}_over_plain", {})[way] = summary(ratios)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, help="where the result is written")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--dtypes", nargs="+", choices=tuple(DTYPES), default=list(DTYPES))
    parser.add_argument("--only", nargs=4, metavar=("WAY", "ROWS", "DTYPE", "TRAINED"))
    args = parser.parse_args()
    torch.set_num_threads(THREADS)
    if args.only:
        way, rows, dtype, trained = args.only
        print(json.dumps(peak_above_start(Case(int(rows), dtype, trained), way)))
        return
    cases, equal = {}, {}
    result = {
        "command": " ".join(["python", *sys.argv]),
        "shape": {"width": WIDTH, "vocabulary": VOCABULARY},
        "most_rows_in_a_chunk": modeling_dream.CHUNK_LOGITS // VOCABULARY,
        **provenance(),
        "gradient_difference": equal,
        "cases": cases,
    }
    for dtype, trained in itertools.product(args.dtypes, TRAINED):
        equal[f"{dtype} {trained}"] = differences(dtype, trained)
        print(dtype, trained, equal[f"{dtype} {trained}"], flush=True)
        for rows in ROWS:
            names = [str(rows), dtype, trained]
            cases[" ".join(names)] = found = measure(names, args.repeat)
            print(names, {k: v for k, v in found.items() if k != "seconds"}, flush=True)
            write(args.folder, result)  # a long run that is stopped keeps what it has
    result["torch_default_options"] = {
        trained: in_child("torch", str(ROWS[0]), "fp32", trained) for trained in TRAINED
    }
    write(args.folder, result)
    print(json.dumps({k: result[k] for k in ("gradient_difference", "torch_default_options")}))


def write(folder: Path | None, result: dict) -> None:
    """Writes result.json, where a folder was given."""
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "result.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
