"""What soft-masking costs: plain, ours (sparse), and the dense twin, in one run.

    python benchmarks/soft_mask_overhead.py benchmarks/results/DATE_overhead

The dense twin is the published computation: a (batch, length, vocabulary) one-hot mixture for
every position, multiplied with the embedding table. It stays here as the slow baseline.
Each is timed in turns within one process; peak memory is read in fresh processes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from softmask import benchmark
from softmask.config import SoftMaskConfig

ARGUMENTS = (
    "--hidden 512 --layers 8 --heads 8 --kv-heads 2 --intermediate 2688 --vocabulary 151936 "
    "--prompt-tokens 64 --new-tokens 192 --steps 8 --threads 2"
).split()


@torch.no_grad()
def dense_twin(model, canvas_BL, steps: int, soft: SoftMaskConfig) -> tuple[float, int]:
    """Entropy decoding with the published dense mixture; returns (seconds, forwards)."""
    started = time.perf_counter()
    mask_id = model.config.mask_token_id
    table_VD = model.model.embed_tokens.weight
    canvas_BL = canvas_BL.clone()
    embeds_BLD = table_VD[canvas_BL]
    times = torch.linspace(1, 1e-3, steps + 1)
    for step in range(steps):
        logits_BLV = model(inputs_embeds=embeds_BLD).logits
        masked_BL = canvas_BL == mask_id
        logits_NV = logits_BLV[masked_BL]
        probs_NV = logits_NV.softmax(-1)
        tokens_N = probs_NV.argmax(-1)
        confidence_N = (probs_NV * torch.log(probs_NV + 1e-10)).sum(-1)
        count = int(masked_BL.sum() * (1 - times[step + 1] / times[step]))
        if step == steps - 1:
            count = int(masked_BL.sum())
        places = masked_BL.flatten().nonzero().squeeze(1)[confidence_N.topk(count).indices]
        predicted = canvas_BL.flatten().clone()
        predicted[masked_BL.flatten()] = tokens_N
        canvas_BL.view(-1)[places] = predicted[places]
        embeds_BLD = _dense_mix(logits_BLV, canvas_BL, mask_id, soft) @ table_VD
    return time.perf_counter() - started, steps


def _dense_mix(logits_BLV, canvas_BL, mask_id: int, soft: SoftMaskConfig):
    probs_BLV = logits_BLV.softmax(-1)
    negative_entropy_BL = (probs_BLV * torch.log(probs_BLV + 1e-10)).sum(-1)
    lambda_BL = soft.scale * torch.sigmoid(soft.steepness * (negative_entropy_BL - soft.offset))
    lambda_BL = lambda_BL * (canvas_BL == mask_id)
    values, ids = logits_BLV.topk(soft.k, dim=-1)
    q_BLV = torch.zeros_like(logits_BLV).scatter(-1, ids, values.softmax(-1))
    onehot_BLV = torch.nn.functional.one_hot(canvas_BL, logits_BLV.shape[-1]).float()
    return (1 - lambda_BL[..., None]) * onehot_BLV + lambda_BL[..., None] * q_BLV


def _dense_runner(args):
    model = benchmark._model(args)
    canvas = torch.full((1, args.prompt_tokens + args.new_tokens), model.config.mask_token_id)
    canvas[:, : args.prompt_tokens] = torch.arange(args.prompt_tokens)
    soft = SoftMaskConfig(k=args.k, **benchmark.SOFT)
    return lambda: dense_twin(model, canvas, args.steps, soft)


def _peak(mode: str) -> float:
    child = subprocess.run(
        [sys.executable, __file__, "--only", mode], capture_output=True, text=True, check=True
    )
    return json.loads(child.stdout.splitlines()[-1])["peak_mb"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, help="where the result is written")
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--only", choices=("plain", "soft", "dense"))
    own = parser.parse_args()
    shape = argparse.ArgumentParser()
    benchmark.add_arguments(shape)
    args = shape.parse_args(ARGUMENTS)
    torch.set_num_threads(args.threads)
    if own.only == "dense":
        _dense_runner(args)()
    elif own.only:
        benchmark.runner(args)(own.only)
    if own.only:
        print(json.dumps({"peak_mb": round(benchmark.peak_mb("cpu"), 1)}))
        return
    once, dense = benchmark.runner(args), _dense_runner(args)
    run = {"plain": lambda: once("plain"), "soft": lambda: once("soft"), "dense": dense}
    milliseconds: dict[str, list[float]] = {mode: [] for mode in run}
    for repeat in range(own.repeat + 1):
        for mode, call in run.items():
            seconds, forwards = call()
            if repeat:  # the first round warms up
                milliseconds[mode].append(1000 * seconds / forwards)
                print(mode, round(milliseconds[mode][-1], 1), flush=True)
    peaks = {mode: _peak(mode) for mode in run}
    ratios = {
        f"{mode}_over_plain": benchmark.summary(
            [a / b for a, b in zip(milliseconds[mode], milliseconds["plain"], strict=True)]
        )
        for mode in ("soft", "dense")
    }
    result = {
        "command": "python benchmarks/soft_mask_overhead.py",
        "model": " ".join(ARGUMENTS),
        **benchmark.provenance(),
        "ms_per_step": milliseconds,
        "median_ms": {mode: statistics.median(v) for mode, v in milliseconds.items()},
        "peak_mb": peaks,
        "ratios": ratios,
    }
    if own.folder:
        own.folder.mkdir(parents=True, exist_ok=True)
        (own.folder / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({"ratios": ratios, "peak_mb": peaks, "median_ms": result["median_ms"]}))


if __name__ == "__main__":
    main()
